"""How fast neighbours are found, beside FAISS, and SLOF, beside the released code's way to it."""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.neighbors import LocalOutlierFactor

from clipdef_jax import detect
from clipdef_jax.bench import timing
from clipdef_jax.errors import UserError


class _Work(NamedTuple):
    """Something to time.

    Attributes:
      what: its name in the table.
      run: does it.
      points: that are looked after.
      flop: of the products of points with points that it takes; None if it is not known by these.
      gib: most memory of the process up to its end, if nothing else used more before.
    """

    what: str
    run: Callable[[], Any]
    points: int
    flop: float | None = None
    gib: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--points", type=int, default=100_000, help="in the reference")
    parser.add_argument("--queries", type=int, default=10_000, help="where not all are queries")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=16, help="neighbours of each")
    parser.add_argument("--pairs", type=int, default=2048, help="that SLOF scores")
    parser.add_argument("--pair-dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3, help="of all but the graph")


def run(arguments: argparse.Namespace) -> timing.Result:
    """Measures the search for neighbours, then SLOF on top of it.

    Raises:
      UserError: there are more queries than points.
    """
    if not 0 < arguments.queries <= arguments.points:
        raise UserError(
            f"--queries={arguments.queries}: expected 1 to {arguments.points}, of the --points"
        )
    search, graph, *rivals = _neighbours(arguments)
    peak = timing.matmul_peak("float32")
    peaks: list[float] = []
    rows = [
        *_compare([search, *rivals], arguments.repeats, peak, peaks),
        # Takes as long as many of the others: once has to do.
        *_compare([graph, *rivals], 1, peak, peaks),
        *_compare(_slof(arguments), arguments.repeats, peak, peaks),
    ]
    notes = [
        "ours is: so many times as fast, by points/s, in turn with this rival",
        f"of peak: {statistics.median(peaks) / 1e9:,.0f} GFLOP/s, a product of matrices in float32 "
        "between the rounds; 2 FLOP for each dimension of a pair of points, and of all pairs once",
        "peak GiB: most memory of the process by then, the points in it and no rival",
        "released code's way: all distances by differences, all sorted; here in NumPy and SciPy",
    ]
    if not rivals:
        notes.append("FAISS: not installed")
    title = f"{arguments.points:,} x {arguments.dim}, k={arguments.k}"
    return timing.Result(f"Neighbours and detectors: {title}", rows, notes)


def _neighbours(arguments: argparse.Namespace) -> list[_Work]:
    """Returns queries against a reference, the graph of all pairs, and FAISS if installed."""
    count, asked, dim, k = arguments.points, arguments.queries, arguments.dim, arguments.k
    points = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    queries, own = points[:asked].copy(), np.arange(count)[:, None]
    ours = [
        _Work(
            f"k-NN of {asked:,} queries",
            lambda: detect.knn(queries, points, k, exclude=own[:asked]),
            asked,
            2.0 * dim * asked * count,
        ),
        _Work(
            "k-NN graph, all pairs",
            lambda: detect.knn(points, points, k, exclude=own),
            count,
            1.0 * dim * count * (count - 1),
        ),
    ]
    # Before there is a rival: a process only knows the most memory it ever had.
    for number, work in enumerate(ours):
        work.run()
        ours[number] = work._replace(gib=_peak_gib())
    if not timing.installed("faiss"):
        return ours
    import faiss

    index = faiss.IndexFlatL2(dim)
    index.add(points)
    # One more, as it does not leave out the point itself.
    rival = _Work(
        f"  FAISS, {asked:,} queries",
        lambda: index.search(queries, k + 1),
        asked,
        2.0 * dim * asked * count,
    )
    return [*ours, rival]


def _slof(arguments: argparse.Namespace) -> list[_Work]:
    """Returns ways to the simplified local outlier factor of pairs."""
    pairs, dim, k = arguments.pairs, arguments.pair_dim, arguments.k
    image, text = np.random.default_rng(1).standard_normal((2, pairs, dim), np.float32)

    def ours() -> Any:
        return detect.score(image, text, method="slof", k=k)

    ours()  # Compiles.
    points = np.concatenate([image, text])
    factor = LocalOutlierFactor(n_neighbors=k)
    return [
        _Work(f"SLOF of {pairs:,} x {dim:,}", ours, pairs),
        _Work("  released code's way", lambda: _released_slof(image, text, k), pairs),
        _Work("  scikit-learn's LOF", lambda: factor.fit(points), pairs),
    ]


def _released_slof(image_NxD: np.ndarray, text_NxD: np.ndarray, k: int) -> np.ndarray:
    """Returns SLOF (N,) as the released code finds it, but for its mistakes."""
    reference_RxD = np.concatenate([image_NxD, text_NxD])
    distances_NxR = cdist(image_NxD, reference_RxD)
    own_N = np.arange(len(image_NxD))
    for left_out_N in (own_N, own_N + len(image_NxD)):
        distances_NxR[own_N, left_out_N] = np.inf
    order_NxR = np.argsort(distances_NxR, axis=1)
    sorted_RxR = np.sort(cdist(reference_RxD, reference_RxD), axis=1)
    kdist_R = sorted_RxR[:, k]
    kdist_N = distances_NxR[own_N, order_NxR[:, k - 1]]
    return (kdist_N[:, None] / kdist_R[order_NxR[:, :k]]).mean(axis=1)


def _compare(
    works: Sequence[_Work], repeats: int, measure_peak: Callable[[], float], peaks: list[float]
) -> list[dict[str, Any]]:
    """Returns a row for each, the first being ours; adds the machine's FLOP/s to `peaks`."""
    seconds: dict[str, list[float]] = {work.what: [] for work in works}
    own_peaks = []
    for _ in range(repeats):
        once = timing.in_turn({work.what: work.run for work in works}, 1, warmup=0)
        own_peaks.append(measure_peak())
        for what, (second,) in once.items():
            seconds[what].append(second)
    peaks += own_peaks
    ours = works[0]
    rows = []
    for work in works:
        second = statistics.median(seconds[work.what])
        used = None
        if work.flop:
            each = zip(seconds[work.what], own_peaks, strict=True)
            used = f"{statistics.median(work.flop / s / peak for s, peak in each):.0%}"
        times = timing.ratio(seconds, work.what, ours.what) * ours.points / work.points
        rows.append(
            {
                "what": work.what,
                "seconds": second,
                "points/s": work.points / second,
                "GFLOP/s": work.flop / second / 1e9 if work.flop else None,
                "of peak": used,
                "ours is": None if work is ours else f"{times:.2f} x",
                "peak GiB": work.gib,
            }
        )
    return rows


def _peak_gib() -> float:
    """Returns the most memory this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

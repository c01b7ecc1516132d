"""Which points a pair is held against: a batch, drawn samples of the data, or all of it."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from clipdef_jax.detect.knn import MEMORY
from clipdef_jax.detect.scores import (
    BY_NEIGHBOURS,
    Density,
    against,
    among,
    by_neighbours,
    check_alike,
    check_k,
    clip_score,
    density_of,
    isolation_forest,
)
from clipdef_jax.detect.unit import unit_rows
from clipdef_jax.errors import UserError

Reference = Literal["batch", "subsample", "full"]
Query = Literal["image", "caption", "both"]
_PARTS: dict[Query, list[int]] = {"image": [0], "caption": [1], "both": [0, 1]}
# What needs embeddings and no more.
FROM_EMBEDDINGS = (*BY_NEIGHBOURS, "iforest", "clip_score")


def score_all(
    image: Any,
    text: Any = None,
    *,
    methods: Sequence[str],
    k: int = 16,
    reference: Reference = "subsample",
    size: int = 2048,
    draws: int = 4,
    poison_rate: float = 0.001,
    query: Query = "image",
    normalise: bool = False,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
    seconds: dict[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Returns how suspect each pair of a whole data set is, by several detectors at once.

    All of them that go by neighbours share one search.

    Poisoned pairs are near each other. Held against all of a large data set, they are neighbours
    enough for one another and stand out no more; held against few pairs, hardly another poison is
    among these. So the size of the reference is bounded: k > poison_rate * size. It is of no
    account to "iforest", whose trees see 256 points each, and to "clip_score".

    Args:
      image: (N, D) image embeddings, float; NumPy arrays may be memory-mapped.
      text: (N, D) embeddings of their captions: they join the reference.
      methods: names of `FROM_EMBEDDINGS`.
      k: number of neighbours.
      reference: "batch": the pairs are shuffled and cut into batches of `size`, each its own
        reference (the paper). "subsample": `size` pairs are drawn, `draws` times independently,
        and each pair's scores averaged. "full": all pairs; finds duplicates and natural clusters.
      size: pairs of a batch or a draw; all, if there are fewer.
      draws: number of draws, of "subsample".
      poison_rate: expected share of poisoned pairs; only a warning depends on it.
      query: what is scored: the "image" (the paper), the "caption", or "both", of which the
        higher counts.
      normalise: scale the embeddings to length 1 first; the paper does not.
      seed: of shuffling, draws and trees.
      memory: as in `knn`, in bytes.
      progress: called with the number of steps done and of all steps.
      seconds: gets the time of the search for neighbours, compilation included, as "knn".

    Returns:
      By method, (N,) float32, finite; a higher score is more suspect.

    Raises:
      UserError: arrays do not fit one another or are not finite; an argument is out of range.
    """
    points = _Points(
        {"image": image} if text is None else {"image": image, "text": text}, normalise
    )
    size = points.pairs if reference == "full" else min(size, points.pairs)
    _check(points, methods, k, reference, query, size, draws)
    parts = _PARTS[query]
    near = [method for method in methods if method in BY_NEIGHBOURS]
    found: dict[str, np.ndarray] = {}
    if near:
        poisoned = poison_rate * size * (1 if text is None else 2)
        if k <= poisoned:
            warnings.warn(
                f"k={k} is not above the {poisoned:g} poisoned points to be expected in a "
                f"reference of {size} pairs (poison_rate={poison_rate:g}): all neighbours of a "
                "poisoned pair may be poisoned; take a larger k or a smaller reference",
                stacklevel=2,
            )
        rng, clock = np.random.default_rng(seed), _Clock({} if seconds is None else seconds)
        if reference == "full":
            with clock:
                hood = among(points, points.pairs, k, memory=memory, progress=progress)
            found = {m: by_neighbours(m, hood).reshape(-1, points.pairs)[parts] for m in near}
        elif reference == "batch":
            found = _by_batches(points, parts, near, k, size, rng, memory, progress, clock)
        else:
            samples = [_draw(points, k, size, rng, clock) for _ in range(draws)]
            found = _by_draws(points, parts, near, k, samples, memory, progress, clock)
    if "iforest" in methods:
        found["iforest"] = _by_forest(points, parts, seed, memory)
    if "clip_score" in methods:
        found["clip_score"] = _clip_scores(points, memory)
    return {method: found[method].max(axis=0) for method in methods}


class _Clock:
    """Adds up the time spent under it as `seconds["knn"]`."""

    def __init__(self, seconds: dict[str, float]):
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds["knn"] = self._seconds.get("knn", 0.0) + time.monotonic() - self._began


def _by_batches(points, parts, methods, k, size, rng, memory, progress, clock):
    """Returns scores by method, (parts, N), each batch held against itself."""
    scores = {method: np.empty((len(parts), points.pairs), np.float32) for method in methods}
    order = rng.permutation(points.pairs)
    starts = range(0, points.pairs, size)
    for number, start in enumerate(starts, start=1):
        # The last batch is filled up from the first: all have one size, as k and size go together.
        rows = order.take(range(start, start + size), mode="wrap")
        with clock:
            hood = among(points.of_pairs(rows), size, k, memory=memory)
        new = rows[: points.pairs - start]
        for method in methods:
            of_batch = by_neighbours(method, hood).reshape(-1, size)
            scores[method][:, new] = of_batch[parts, : len(new)]
        if progress:
            progress(number, len(starts))
    return scores


def _by_draws(points, parts, methods, k, samples, memory, progress, clock):
    """Returns scores by method, (parts, N), the mean over drawn references."""
    total = {method: np.zeros((len(parts), points.pairs)) for method in methods}
    blocks = _blocks(points, memory)
    done = 0
    for block in blocks:
        for row, part in enumerate(parts):
            queries = points.part(part)[block]
            for sample in samples:
                own = sample.own_NxP[block]
                with clock:
                    hood = against(queries, sample.reference, sample.density, k, own, memory=memory)
                for method in methods:
                    total[method][row, block] += by_neighbours(method, hood)
                done += 1
                if progress:
                    progress(done, len(blocks) * len(parts) * len(samples))
    return {method: (sums / len(samples)).astype(np.float32) for method, sums in total.items()}


class _Sample(NamedTuple):
    """A reference drawn from all pairs.

    Attributes:
      reference: (R, D) images, then captions.
      density: of it.
      own_NxP: rows of the reference that hold a pair's own image and caption, -1 for none.
    """

    reference: np.ndarray
    density: Density
    own_NxP: np.ndarray


def _draw(points, k, size, rng, clock):
    drawn = np.sort(rng.choice(points.pairs, size, replace=False))
    reference = points.of_pairs(drawn)
    own_NxP = np.full((points.pairs, points.parts), -1, np.int32)
    own_NxP[drawn] = np.arange(len(reference)).reshape(points.parts, size).T
    with clock:
        return _Sample(reference, density_of(reference, k), own_NxP)


def _by_forest(points, parts, seed, memory):
    """Returns scores (parts, N): a tree takes few points, so that they may come from anywhere."""
    forest = isolation_forest(points, seed)
    return np.stack(
        [
            np.concatenate([forest(points.part(part)[block]) for block in _blocks(points, memory)])
            for part in parts
        ]
    )


def _clip_scores(points, memory):
    image, text = points.part(0), points.part(1)
    scores = [clip_score(image[block], text[block]) for block in _blocks(points, memory)]
    return np.concatenate(scores)[None]


def _blocks(points: _Points, memory: int) -> list[slice]:
    """Returns the pairs in blocks of nearly one size, as each size is compiled for."""
    most = max(1, memory // (16 * points.shape[1]))
    edges = np.linspace(0, points.pairs, -(-points.pairs // most) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def _check(points, methods, k, reference, query, size, draws):
    named = [("method", method, FROM_EMBEDDINGS) for method in methods]
    named += [("reference", reference, get_args(Reference)), ("query", query, get_args(Query))]
    for name, value, allowed in named:
        if value not in allowed:
            raise UserError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
    if points.parts == 1 and (query != "image" or "clip_score" in methods):
        raise UserError(f"query={query!r}, methods={methods}: these need captions; pass text=")
    if draws < 1:
        raise UserError(f"draws={draws}: expected 1 or more")
    near = [method for method in methods if method in BY_NEIGHBOURS]
    check_k(near, k, size, has_text=points.parts == 2)


class _Points:
    """Images, and captions after them, as one array that is read where it lies.

    Args:
      arrays: (N, D) each, by name.
      normalise: give rows of length 1; a zero row stays one.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, arrays: Mapping[str, Any], normalise: bool):
        for name, array in arrays.items():
            if len(array.shape) != 2 or 0 in array.shape:
                raise UserError(
                    f"{name} embeddings are {array.shape}, expected (pairs, dimensions)"
                )
        self._names, self._arrays = list(arrays), list(arrays.values())
        self._normalise = normalise
        check_alike(self._arrays[0], self._arrays[-1])
        self.parts, self.pairs = len(arrays), self._arrays[0].shape[0]
        self.shape = self.parts * self.pairs, self._arrays[0].shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns rows as float32; raises `UserError` if one is not finite."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            part, first = divmod(start, self.pairs)
            if step == 1 and stop - start <= self.pairs - first:
                return self._read(part, np.s_[first : first + stop - start])
            rows = np.arange(start, stop, step)
        taken = np.empty((len(rows), self.shape[1]), np.float32)
        part_of, row_of = np.divmod(rows, self.pairs)
        for part in range(self.parts):
            taken[part_of == part] = self._read(part, row_of[part_of == part])
        return taken

    def part(self, number: int) -> _Points:
        """Returns the images (0) or captions (1) alone."""
        return _Points({self._names[number]: self._arrays[number]}, self._normalise)

    def of_pairs(self, rows: np.ndarray) -> np.ndarray:
        """Returns the images, then the captions, of some pairs."""
        return np.concatenate([self._read(part, rows) for part in range(self.parts)])

    def _read(self, part: int, rows: Any) -> np.ndarray:
        values = np.asarray(self._arrays[part][rows]).astype(np.float32, copy=False)
        is_finite = np.isfinite(values).all(axis=1)
        if not is_finite.all():
            bad = np.arange(self.pairs)[rows][np.argmin(is_finite)]
            raise UserError(
                f"{self._names[part]} embedding {bad} is not finite; leave out pairs such as this"
            )
        return unit_rows(values) if self._normalise else values

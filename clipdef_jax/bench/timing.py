"""What the benchmarks share: rivals timed in turn, the machine's peak, a table and a JSON file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich import box
from rich.table import Table

from clipdef_jax.jobs import write_json
from clipdef_jax.progress import console


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of a benchmark.

    Attributes:
      title: what was measured.
      rows: of the table, each with the same columns; None shows as "-", a column of it not at all.
      notes: lines under the table.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()

    def show(self) -> None:
        """Prints the table."""
        sheet = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        columns = [name for name in self.rows[0] if any(row[name] is not None for row in self.rows)]
        for number, name in enumerate(columns):
            sheet.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            sheet.add_row(*(_text(row[name]) for name in columns))
        console.print(sheet)
        for note in self.notes:
            console.print(f"[dim]{note}[/dim]")
        console.print(f"[dim]{hardware()}[/dim]")

    def write(self, path: pathlib.Path, arguments: Sequence[str]) -> None:
        """Writes the figures, the machine and the versions as JSON."""
        versions = {"python": platform.python_version()}
        for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
            if installed(package):
                versions[package] = importlib.metadata.version(package)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "title": self.title,
                "arguments": list(arguments),
                "rows": [dict(row) for row in self.rows],
                "notes": list(self.notes),
                "hardware": hardware(),
                "versions": versions,
            },
        )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def in_turn(
    runs: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Times rivals in turn, so that a noisy neighbour disturbs them alike.

    Args:
      runs: each returns when its work is done, or returns arrays still being computed.
      repeats: times each is timed.
      warmup: times each runs before.

    Returns:
      Seconds, by name.
    """
    for run in runs.values():
        for _ in range(warmup):
            jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], rival: str, ours: str) -> float:
    """Returns how many times as long `rival` took as `ours`: the median over the rounds."""
    return statistics.median(
        theirs / own for theirs, own in zip(seconds[rival], seconds[ours], strict=True)
    )


def matmul_peak(dtype: str, side: int | None = None) -> Callable[[], float]:
    """Returns a function that measures the rate of a large matrix product on all devices, FLOP/s.

    To be called between the rounds of what is held against it.

    Args:
      dtype: of the factors.
      side: of the square factors; None: 2,048 on a CPU, else 8,192.
    """
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    product = jax.jit(lambda a_NxN: a_NxN @ a_NxN)
    factor = jnp.ones((side, side), dtype)
    product(factor).block_until_ready()

    def measure() -> float:
        began = time.perf_counter()
        result = factor
        for _ in range(5):
            result = product(factor)
        result.block_until_ready()
        return 5 * 2 * side**3 / (time.perf_counter() - began) * jax.device_count()

    return measure


def installed(package: str) -> bool:
    """Returns whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def hardware() -> str:
    """Returns the machine in words."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{jax.device_count()} x {device.device_kind}, " if device.platform != "cpu" else ""
    return f"{kind}{cores} cores of {_cpu()}"


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())

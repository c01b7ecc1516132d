"""How fast a model trains: rate, utilisation, memory and compilation, PyTorch beside it."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from clipdef_jax import losses, models, sharding
from clipdef_jax.bench import timing, workload
from clipdef_jax.errors import UserError
from clipdef_jax.models.clip import CLIP
from clipdef_jax.models.config import NAMED
from clipdef_jax.progress import console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--model", default="ViT-B/32", choices=sorted(NAMED))
    parser.add_argument("--batch", default="16", help='pairs a step, or "max": all that fits')
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--loss", default="clip", choices=sorted(losses.BUILTIN))
    parser.add_argument("--remat", action="store_true", help="recompute activations")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile-times", action="store_true", help="leave these out")


def run(arguments: argparse.Namespace) -> timing.Result:
    """Measures a training step.

    Raises:
      UserError: the batch is neither a number nor "max", or nothing fits.
    """
    mesh = sharding.make_mesh()
    clip = models.get(arguments.model, dtype=arguments.dtype, remat=arguments.remat)
    with jax.set_mesh(mesh):
        if arguments.batch == "max":
            batch = _largest(clip, arguments.loss, mesh)
        elif arguments.batch.isdigit() and int(arguments.batch) > 0:
            batch = int(arguments.batch)
        else:
            raise UserError(f'--batch={arguments.batch}: expected a positive number or "max"')
        ours = workload.Workload(clip, arguments.loss, batch, mesh)
        cold, warm = (None, None) if arguments.no_compile_times else _compile_seconds(ours)
        runs: dict[str, Callable[[], Any]] = {"ours": ours}
        rival = arguments.loss == "clip" and arguments.dtype == "float32"
        if rival and jax.default_backend() == "cpu" and timing.installed("torch"):
            from clipdef_jax.bench import torch_clip

            runs["PyTorch"] = torch_clip.training_step(clip.config, batch)
        peak = timing.matmul_peak(arguments.dtype)
        rounds: list[tuple[dict[str, list[float]], float]] = []
        for number in range(arguments.repeats):
            rounds.append((timing.in_turn(runs, 1, warmup=int(number == 0)), peak()))
    seconds = {name: [times[name][0] for times, _ in rounds] for name in runs}
    peaks = [rate for _, rate in rounds]
    operations = workload.model_flops(clip, ours.loss, batch)
    rows = []
    for name in runs:
        used = [operations / s / p for s, p in zip(seconds[name], peaks, strict=True)]
        own = name == "ours"
        rows.append(
            {
                "what": name,
                "step s": statistics.median(seconds[name]),
                "pairs/s": batch / statistics.median(seconds[name]),
                "GFLOP/s": operations / statistics.median(seconds[name]) / 1e9,
                "of peak": f"{statistics.median(used):.0%}",
                "x PyTorch": timing.ratio(seconds, "PyTorch", name) if "PyTorch" in runs else None,
                "peak GiB": (ours.bytes_held or 0) / 2**30 or None if own else None,
                "compile s": cold if own else None,
                "from cache s": warm if own else None,
            }
        )
    notes = [
        f"{operations / batch / 1e9:.3g} GFLOP a pair, forward x 3, counted in the program; "
        f"peak: a matrix product in {arguments.dtype}, "
        f"{statistics.median(peaks) / 1e9:,.0f} GFLOP/s, between the rounds"
    ]
    if "PyTorch" not in runs:
        notes.append("PyTorch: " + ("not installed" if rival else "compared in float32 with clip"))
    title = f"{arguments.model}, {arguments.loss}, batch {batch}, {arguments.dtype}"
    return timing.Result(f"Training step: {title}", rows, notes)


def _compile_seconds(work: workload.Workload) -> tuple[float, float]:
    """Returns the seconds of a compilation, and of one that finds the program on the disk."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        seconds = []
        try:
            for _ in range(2):
                compilation_cache.reset_cache()
                jax.clear_caches()
                began = time.perf_counter()
                work.compile()
                seconds.append(time.perf_counter() - began)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
    return seconds[0], seconds[1]


def _largest(clip: CLIP, loss: str, mesh: jax.sharding.Mesh) -> int:
    """Returns the largest batch, a multiple of a sixteenth of a power of two, that fits."""

    def fits(batch: int) -> bool:
        console.print(f"[dim]trying a batch of {batch}[/dim]")
        try:
            jax.block_until_ready(workload.Workload(clip, loss, batch, mesh)())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return False
        finally:
            jax.clear_caches()
        return True

    if jax.default_backend() == "cpu":
        raise UserError("--batch=max: for devices with memory of their own; give a number")
    batch = 16 * mesh.size
    if not fits(batch):
        raise UserError(f"not even a batch of {batch} fits; try --remat or another --dtype")
    while fits(2 * batch):
        batch *= 2
    for part in (batch // 2, batch // 4):
        if part % mesh.size == 0 and fits(batch + part):
            batch += part
    return batch

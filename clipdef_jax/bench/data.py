"""How fast pairs come in: read, decoded, augmented, poisoned, and whole batches by worker count."""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from clipdef_jax import attacks, data
from clipdef_jax.bench import timing
from clipdef_jax.data import captions, decode, loader, subcaptions, tokenizer
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source, Trigger

_TRIGGERS: dict[str, dict[str, Any]] = {
    "badnet": {},
    "blended": {"pattern": "fixed"},
    "sig": {},
    "wanet": {},
    "nashville": {},
}
_VIEWS = ("image", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--source", default="emoji:train,side=224", help="spec, as data.train")
    parser.add_argument("--side", type=int, default=224, help="of the decoded images, in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--records", type=int, default=1000, help="measured, each time")


def run(arguments: argparse.Namespace) -> timing.Result:
    """Measures each stage alone in one thread, then batches as training gets them.

    Raises:
      UserError: the source cannot be opened, or is smaller than two batches.
    """
    source = data.open(arguments.source)
    if len(source) < 2 * arguments.batch:
        raise UserError(
            f"--source={arguments.source}: {len(source)} records, expected two batches of "
            f"{arguments.batch} or more"
        )
    count = min(arguments.records, len(source))
    indices = np.random.default_rng(0).permutation(len(source))[:count].tolist()
    pairs = list(_readable(source, indices))
    images = [decode.prepare_pair(pair, arguments.side).image for pair in pairs]
    rng = np.random.default_rng(0)
    stages: dict[str, Callable[[], Any]] = {
        "read": lambda: list(_readable(source, indices)),
        f"decode to {arguments.side} px": lambda: [
            decode.prepare_pair(pair, arguments.side) for pair in pairs
        ],
        "augment captions (EDA)": lambda: [captions.eda(pair.caption, rng) for pair in pairs],
        "sub-captions": lambda: [subcaptions.make(pair.caption, rng) for pair in pairs],
    }
    for name, settings in _TRIGGERS.items():
        trigger = attacks.get_trigger(name, **settings)
        stages[f"trigger {name}"] = functools.partial(_all_under, trigger, images, rng)
    rows = [_row(name, len(pairs) / _seconds(stage)) for name, stage in stages.items()]

    words = tokenizer.train((pair.caption for pair in pairs), 2048, 77)
    reader = loader.Loader(source, words, arguments.side, _VIEWS)
    steps = max(count // arguments.batch, 2)
    rates = {}
    for workers in arguments.workers:
        what = f"{workers} worker process{'es' * (workers > 1)}" if workers else "threads"
        batches = loader.train_batches(reader, arguments.batch, 1_000_000, workers=workers)
        rates[workers] = _rate(batches, steps, arguments.batch)
        rows.append(_row(f"batches, {what}", rates[workers]))
    notes = ["stages: one thread, each alone; batches: decoded images and tokens"]
    if timing.installed("torch"):
        from clipdef_jax.bench import torch_loader

        rival = torch_loader.batches(source, arguments.side, arguments.batch, workers=2)
        theirs = _rate(rival, steps, arguments.batch)
        rows.append(_row("PyTorch DataLoader, 2 workers", theirs))
        ratios = ", ".join(f"{rates[n] / theirs:.2f} with {n} workers" for n in rates)
        notes.append(f"times as fast as PyTorch, which decodes but has no captions: {ratios}")
    else:
        notes.append("PyTorch: not installed")
    return timing.Result(f"Data: {arguments.source}", rows, notes)


def _all_under(trigger: Trigger, images: list[Any], rng: np.random.Generator) -> None:
    for image in images:
        trigger(image, rng)


def _row(what: str, rate: float) -> dict[str, Any]:
    return {"what": what, "pairs/s": rate, "ms a pair": 1000 / rate}


def _readable(source: Source, indices: Iterable[int]) -> Iterable[Any]:
    for index in indices:
        try:
            yield source[index]
        except BadRecord:
            continue


def _seconds(stage: Callable[[], Any]) -> float:
    began = time.perf_counter()
    stage()
    return time.perf_counter() - began


def _rate(batches: Iterable[Any], steps: int, rows: int) -> float:
    """Returns pairs per second, the first two batches left out: with them the workers start."""
    batches = iter(batches)
    for _ in itertools.islice(batches, 2):
        pass
    began = time.perf_counter()
    taken = sum(1 for _ in itertools.islice(batches, steps))
    return taken * rows / (time.perf_counter() - began)

"""What a scan would take, from a few batches; what that writes goes to a folder that is deleted."""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from clipdef_jax import data, detect, flops, sharding
from clipdef_jax.data.loader import Loader
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.detect.encode import encode, features
from clipdef_jax.detect.knn import MEMORY
from clipdef_jax.errors import BadRecord
from clipdef_jax.parts import Model, Run
from clipdef_jax.progress import console, duration
from clipdef_jax.scan.material import Material
from clipdef_jax.types import Source

# Batches encoded to see how fast it goes, after a first one that compiles.
_BATCHES = 4
_SHOWN = 3
_MIB = 2**20


def estimate(job: Run, material: Material, methods: tuple[str, ...]) -> dict[str, Any]:
    """Prints what there is, a few records of it, and the room and time a scan would take.

    Args:
      job: the run, its work directory a temporary one.
      material: what would be scanned.
      methods: the detectors.

    Returns:
      "pairs", "dimensions", "disk_mib", "memory_mib", "embed_seconds", "score_seconds",
      "score_flop"; and if there is a model "embed_flop", of all pairs, "read_rate", pairs that one
      core reads a second, and "encode_rate", those that the devices encode.
    """
    config = job.config
    if material.source is None or material.model is None:
        found = Embeddings(pathlib.Path(config.embed.folder))
        pairs, per_pair, parameters, disk = len(found), 0.0, 0.0, 0.0
        rates: dict[str, Any] = {}
    else:
        pairs = len(material.source)
        found, per_pair = _try(job, material.source, material.model)
        rates = _rates(job, material.source, material.model)
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(material.model.params)) / _MIB
        disk = 2 * pairs * found.image.shape[1] * np.dtype(config.embed.dtype).itemsize / _MIB
    width = found.image.shape[1]
    memory = parameters + (MEMORY + 4 * pairs * len(methods)) / _MIB
    told = {
        "pairs": pairs,
        "dimensions": width,
        "disk_mib": round(disk, 1),
        "memory_mib": round(memory, 1),
        "embed_seconds": round(pairs * per_pair, 1),
        "score_seconds": round(_score_seconds(config, pairs, width), 1),
        "score_flop": 2 * width * _products(config, pairs),
        **rates,
    }
    say = console.print
    say(f"{pairs:,} pairs in {config.embed.folder or config.data.train}", markup=False)
    for row in range(min(_SHOWN, len(found))):
        uid, caption = found.uids[row].as_py(), found.captions[row].as_py()
        say(f"  {uid}  {caption[:80]!r}", markup=False, soft_wrap=True)
    if job.unreadable:
        say(f"unreadable among those tried: {len(job.unreadable)}")
    room = f", {disk:,.0f} MiB on disk in {config.embed.dtype}" if per_pair else ", there already"
    say(f"embeddings: {width} dimensions{room}")
    say(f"memory: about {memory:,.0f} MiB for parameters, search and scores, besides activations")
    rate = (
        f"{duration(pairs * per_pair)} to embed ({1 / per_pair:,.0f} pairs/s), " if per_pair else ""
    )
    say(f"time: about {rate}{duration(told['score_seconds'])} to score")
    if rates:
        read, encoded, flop = told["read_rate"], told["encode_rate"], told["embed_flop"] / pairs
        say(
            f"of it: {flop / 1e9:,.3g} GFLOP a pair to embed, {encoded:,.0f} pairs/s at "
            f"{encoded * flop / 1e12:,.3g} TFLOP/s by {jax.devices()[0].device_kind}; one core "
            f"reads {read:,.0f} pairs/s: {math.ceil(encoded / read)} would keep up; "
            f"{told['score_flop'] / pairs / 1e9:,.3g} GFLOP a pair to score",
            markup=False,
            soft_wrap=True,
        )
    say("a dry run: nothing was written")
    return told


def _try(job: Run, source: Source, model: Model) -> tuple[Embeddings, float]:
    """Returns the embeddings of the first pairs and the seconds that one takes."""
    batch = min(job.config.embed.batch, len(source))
    compiled = data.Subset(source, range(batch))
    # The same ones again where there are no others.
    others = range(batch, min((_BATCHES + 1) * batch, len(source))) or range(batch)
    seconds = 0.0
    for name, part in (("first", compiled), ("timed", data.Subset(source, others))):
        began = time.monotonic()
        encode(
            Loader(part, model.tokenizer, model.clip.config.image_size),
            model.clip,
            model.params,
            job.workdir / name,
            mesh=job.mesh,
            batch=batch,
            workers=job.config.data.workers,
            on_skip=job.unreadable.add,
        )
        seconds = time.monotonic() - began
    return Embeddings(job.workdir / "first"), seconds / len(others)


def _rates(job: Run, source: Source, model: Model) -> dict[str, Any]:
    """Returns what one core and what the devices do alone, from one batch."""
    clip, rows = model.clip, min(job.config.embed.batch, len(source))
    loader = Loader(source, model.tokenizer, clip.config.image_size)
    began = time.monotonic()
    for index in range(rows):
        with contextlib.suppress(BadRecord):
            loader.read(index)
    read = time.monotonic() - began
    rows += -rows % job.mesh.size
    side, length = clip.config.image_size, clip.config.context_length
    images = np.zeros((rows, side, side, 3), np.uint8)
    shared = sharding.shard_batch(
        job.mesh, {"image": images, "text": np.zeros((rows, length), np.int32)}
    )
    arguments = clip, job.mesh, model.params, shared["image"], shared["text"]
    for _ in range(2):  # The first one compiles.
        began = time.monotonic()
        jax.block_until_ready(features(*arguments))
        seconds = time.monotonic() - began
    flop = flops.count(functools.partial(features, clip, job.mesh), *arguments[2:]) // rows
    return {
        "embed_flop": flop * len(source),
        "read_rate": round(rows / read, 1),
        "encode_rate": round(rows / seconds, 1),
    }


def _score_seconds(config: ConfigDict, pairs: int, width: int) -> float:
    """Returns about how long the search takes, from a small one; the rest is short beside it."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((4096, width), np.float32)
    queries = points[:2048].copy()
    for _ in range(2):  # The first one compiles.
        began = time.monotonic()
        detect.knn(queries, points, min(config.score.k, 64))
        seconds = time.monotonic() - began
    return seconds / (2048 * 4096) * _products(config, pairs)


def _products(config: ConfigDict, pairs: int) -> int:
    """Returns how many distances the search computes."""
    size = min(config.score.size, pairs)
    return {
        "subsample": pairs * 2 * size * config.score.draws,
        "batch": 2 * pairs * 2 * size,
        "full": 2 * pairs * 2 * pairs,
    }[config.score.reference]

"""A source to embeddings on disk, shard by shard; stopped, it goes on with the shard it was in."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipdef_jax import sharding
from clipdef_jax.data.loader import Loader, read_blocks
from clipdef_jax.detect import embeddings
from clipdef_jax.models.clip import CLIP

# Columns of the metadata, which the loader has of each record.
_COLUMNS = ("uid", "index", "caption")


def encode(
    loader: Loader,
    clip: CLIP,
    params: Any,
    folder: pathlib.Path,
    *,
    mesh: Mesh,
    batch: int = 256,
    records_per_shard: int = 10_000,
    dtype: str = "float32",
    workers: int = 0,
    on_skip: Callable[[str, str], None] = lambda uid, reason: None,
    on_records: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes the features of all readable pairs of a source, before normalisation.

    A shard holds the records of a fixed range of the source, and what is encoded together does not
    depend on which shards are there already: however often it is stopped, the files are the same.

    Args:
      loader: reads the source.
      clip: the model.
      params: its parameters.
      folder: where the shards go; see `embeddings.Embeddings`. Those that are there stay.
      mesh: shares each batch.
      batch: pairs encoded at once.
      records_per_shard: records of the source to a shard, the unreadable ones included.
      dtype: of the files, "float32" or "float16".
      workers: processes that read.
      on_skip: called with uid and reason of every record left out.
      on_records: called with the number of records done, those of shards already there included.

    Raises:
      UserError: an embedding is not finite, or the disk does not take the files.
    """
    rows = batch + -batch % mesh.size
    total = len(loader.source)
    shards = range(0, total, records_per_shard)
    missing = [
        range(first, min(first + records_per_shard, total))
        for number, first in enumerate(shards)
        if not embeddings.is_written(folder, number)
    ]
    blocks = [(a, min(a + batch, shard.stop)) for shard in missing for a in shard[::batch]]
    done = total - sum(map(len, missing))
    on_records(done)

    features = _behind(loader, clip, params, mesh, blocks, rows, workers)
    for shard in missing:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        metadata: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for first in shard[::batch]:
            block, image, text = next(features)
            count = len(block["index"])
            with np.errstate(over="ignore"):  # What does not fit is refused when it is written.
                parts.append((image[:count].astype(dtype), text[:count].astype(dtype)))
            for name in _COLUMNS:
                metadata[name] += block[name]
            for uid, reason in block["skipped"]:
                on_skip(uid, reason)
            done += min(batch, shard.stop - first)
            on_records(done)
        images, texts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        embeddings.write_shard(folder, shard.start // records_per_shard, images, texts, metadata)


def _behind(
    loader: Loader,
    clip: CLIP,
    params: Any,
    mesh: Mesh,
    blocks: list[tuple[int, int]],
    rows: int,
    workers: int,
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Yields blocks with their features, one behind: the device never waits for the host."""
    waiting = None
    for block in read_blocks(loader, blocks, rows, workers=workers) if blocks else ():
        shared = sharding.shard_batch(mesh, {name: block.pop(name) for name in ("image", "text")})
        coming = features(clip, mesh, params, shared["image"], shared["text"])
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1][0]), np.asarray(waiting[1][1])
        waiting = block, coming
    if waiting is not None:
        yield waiting[0], np.asarray(waiting[1][0]), np.asarray(waiting[1][1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def features(
    clip: CLIP, mesh: Mesh, params: Any, images: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the features of images and captions, (B, D) each, before normalisation.

    Args:
      clip: the model.
      mesh: shares the batch.
      params: its parameters.
      images: uint8 (B, side, side, 3).
      tokens: int32 (B, L).
    """
    image = clip.encode_image(params, clip.preprocess(images))
    text = clip.encode_text(params, tokens)
    whole = sharding.replicated(mesh)
    return jax.lax.with_sharding_constraint((image, text), (whole, whole))

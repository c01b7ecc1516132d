"""A ring buffer of vectors, split over the devices of a mesh: searched, and written in place.

Its first P rows are the ring. There may be more, so that the devices can share them evenly; those
are never found and never written. No device sees another's rows: what travels are the vectors of
the batch. The mesh is the one the caller entered with `jax.set_mesh`.

Dimensions: P rows of the ring, R of the buffer, r one device's share of these, in tiles of t; B the
global batch, b one device's share of it; N devices; D the embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from clipdef_jax import sharding

# Most rows compared with the batch at once.
TILE = 2048
# On a mesh a buffer has a multiple of so many rows, 3 * 2^10: every number of devices that divides
# it can share the buffer, and a checkpoint can move from one such number to another.
ROWS = 3072
# In place of a row: not to be written.
NOWHERE = -1


def random_unit(rng: jax.Array, size: int, dim: int) -> jax.Array:
    """Returns a buffer with a ring of random unit vectors.

    Args:
      rng: a key.
      size: P, rows of the ring.
      dim: D, length of a vector.

    Returns:
      float32 (R, D). R is P, or, on a mesh, the next multiple of `ROWS`.
    """
    ring_PxD = jax.random.normal(rng, (size, dim), jnp.float32)
    ring_PxD /= jnp.linalg.norm(ring_PxD, axis=1, keepdims=True)
    on_a_mesh = bool(jax.sharding.get_abstract_mesh().shape)
    return jnp.pad(ring_PxD, ((0, -size % ROWS if on_a_mesh else 0), (0, 0)))


def nearest(
    buffer_RxD: jax.Array, queries_BxD: jax.Array, *, size: int, tile: int = TILE
) -> tuple[jax.Array, jax.Array]:
    """Finds the row of the ring that has the largest product with each query.

    Exact: every device searches its own rows for the whole batch. Of equal rows the first is found.

    Args:
      buffer_RxD: float32.
      queries_BxD: any float dtype.
      size: P, rows of the ring.
      tile: most rows, of each device, that are compared with the batch at once.

    Returns:
      The indices of the rows, (B,) int32, and the rows, (B, D) float32. A query that is not a
      number finds `NOWHERE`.

    Raises:
      UserError: the devices of the mesh cannot share the batch.
    """
    search = functools.partial(_search, size=size, tile=tile)
    return _on_devices(search, buffer_RxD, queries_BxD)


def look_up(
    buffer_RxD: jax.Array, queries_BxD: jax.Array, rows_B: jax.Array, *, size: int
) -> tuple[jax.Array, jax.Array]:
    """Finds the nearest row to each query, and says where to write once that is done.

    Args:
      buffer_RxD: float32.
      queries_BxD: any float dtype.
      rows_B: int32, where a batch is to be written to.
      size: P, rows of the ring.

    Returns:
      The nearest rows, (B, D) float32, and `rows_B` for `write`: `NOWHERE` for a query that is not
      a number, and otherwise as they were, but known only after the look-up.

    Raises:
      UserError: the devices of the mesh cannot share the batch.
    """
    found_B, nearest_BxD = nearest(buffer_RxD, queries_BxD, size=size)
    return nearest_BxD, jnp.where(found_B == NOWHERE, NOWHERE, rows_B)


def next_rows(pointer: jax.Array, count: int, *, size: int) -> jax.Array:
    """Returns the rows that a batch of `count` is to be written to, (count,) int32.

    Of more vectors than the ring has rows the first ones go `NOWHERE`.

    Args:
      pointer: int32 scalar, the oldest row.
      count: vectors to write.
      size: P, rows of the ring.
    """
    order = jnp.arange(count, dtype=jnp.int32)
    return jnp.where(order < count - size, NOWHERE, (pointer + order) % size)


def write(buffer_RxD: jax.Array, rows_B: jax.Array, vectors_BxD: jax.Array) -> jax.Array:
    """Returns the buffer with a batch written to some of its rows.

    In place if the buffer is given away (donated) and whatever was read from it goes into `rows_B`:
    only so does XLA know that reading comes first.

    Args:
      buffer_RxD: float32.
      rows_B: int32, each row at most once; vectors for `NOWHERE` are dropped.
      vectors_BxD: any float dtype.

    Raises:
      UserError: the devices of the mesh cannot share the batch.
    """
    return _on_devices(_write, buffer_RxD, vectors_BxD, rows_B)[: len(buffer_RxD)]


def _on_devices(
    function: Callable[..., Any], buffer_RxD: jax.Array, vectors_BxD: jax.Array, *whole: jax.Array
) -> Any:
    """Returns `function(buffer, vectors, *whole)`, by each device for its rows of the first two."""
    axes = sharding.batch_axes()
    if not axes:
        return function(buffer_RxD, vectors_BxD, *whole, axes=())
    devices = sharding.batch_devices(len(vectors_BxD))
    # Adds nothing to a buffer that was made on a mesh.
    buffer_RxD = jnp.pad(buffer_RxD, ((0, -len(buffer_RxD) % devices), (0, 0)))
    shared = PartitionSpec(axes)
    return jax.shard_map(
        functools.partial(function, axes=axes),
        in_specs=(shared, shared, *[PartitionSpec()] * len(whole)),
        out_specs=shared,
    )(buffer_RxD, vectors_BxD, *whole)


def _search(buffer_rxD, queries_bxD, *, axes, size, tile):
    share = len(buffer_rxD)
    tile = min(tile, share)
    first = _first_row(share, axes)
    queries_BxD = _gather(queries_bxD, axes).astype(buffer_rxD.dtype)

    def compare(best, start):
        # The last tile starts early enough to be full: a row met twice does not beat itself.
        start = jnp.minimum(start, share - tile)
        rows_txD = lax.dynamic_slice_in_dim(buffer_rxD, start, tile)
        row_t = (first + start + jnp.arange(tile)).astype(jnp.int32)
        product_Bxt = jnp.matmul(queries_BxD, rows_txD.T, precision=lax.Precision.HIGHEST)
        product_Bxt = jnp.where((row_t < size)[None], product_Bxt, -jnp.inf)
        best_B, best_row_B = best
        here_B, here_row_B = jnp.max(product_Bxt, axis=1), row_t[jnp.argmax(product_Bxt, axis=1)]
        better_B = here_B > best_B
        best_row_B = jnp.where(better_B, here_row_B, best_row_B)
        return (jnp.where(better_B, here_B, best_B), best_row_B), None

    zeros_B = jnp.zeros_like(queries_BxD[:, 0])
    nothing = zeros_B - jnp.inf, zeros_B.astype(jnp.int32) + NOWHERE
    (product_B, row_B), _ = lax.scan(compare, nothing, jnp.arange(0, share, tile))
    if not axes:
        return row_B, buffer_rxD[row_B]
    # Each device's rows precede those of the next: of equal products the first is the first row's.
    winner_1xB = jnp.argmax(lax.all_gather(product_B, axes), axis=0, keepdims=True)
    row_B = jnp.take_along_axis(lax.all_gather(row_B, axes), winner_1xB, axis=0)[0]
    own_B = row_B - first
    is_own_B = (own_B >= 0) & (own_B < share)
    found_BxD = jnp.where(is_own_B[:, None], buffer_rxD[own_B.clip(0, share - 1)], 0)
    # One device adds each row, the others zeros.
    found_bxD = lax.psum_scatter(found_BxD, axes, tiled=True)
    mine = _first_row(len(queries_bxD), axes)
    return lax.dynamic_slice_in_dim(row_B, mine, len(queries_bxD)), found_bxD


def _write(buffer_rxD, vectors_bxD, row_B, *, axes):
    share = len(buffer_rxD)
    if axes:
        vectors_BxD = lax.cond(
            (row_B != NOWHERE).any(),
            lambda x_bxD: _gather(x_bxD, axes),
            # Nothing travels where nothing is written.
            lambda x_bxD: jnp.tile(x_bxD, (lax.axis_size(axes), 1)),
            vectors_bxD,
        )
    else:
        vectors_BxD = vectors_bxD
    own_B = row_B - _first_row(share, axes)
    is_own_B = (row_B != NOWHERE) & (own_B >= 0) & (own_B < share)
    # The others get rows past the end, each its own, and are dropped.
    own_B = jnp.where(is_own_B, own_B, share + jnp.arange(len(own_B)))
    return buffer_rxD.at[own_B].set(
        vectors_BxD.astype(buffer_rxD.dtype), mode="drop", unique_indices=True
    )


def _first_row(share, axes):
    return lax.axis_index(axes) * share if axes else 0


def _gather(x_b, axes):
    return lax.all_gather(x_b, axes, tiled=True) if axes else x_b

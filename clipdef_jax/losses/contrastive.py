"""InfoNCE, the one contrastive objective behind every loss, without its B x B logits.

A large batch is met in tiles, and a batch sharded over a mesh in blocks that travel around the
ring of devices: every tile of logits is formed, summed along its rows and its columns, and
forgotten; the backward pass forms it again. The mesh is the one the caller entered with
`jax.set_mesh`; nothing is passed by hand.

A positive is one product of two rows, so only the negatives are summed. With n the logsumexp of
the negatives and p the positive, the cross-entropy is softplus(n - p): it keeps its precision
where the model is sure, as log(exp(n) + exp(p)) - p does not.

Dimensions: B the global batch, b one device's share of it, T tiles of t rows each, D the embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from clipdef_jax import sharding

# Most rows and columns of logits at once: 16 MB in float32. On a CPU 256 to 2,048 are equally fast.
TILE = 2048
# In place of a logit that must not count. Finite: a row with nothing else stays free of NaN.
HIDDEN = -1e30


def take_views(embeddings: Mapping[str, jax.Array], views: Sequence[str]) -> list[jax.Array]:
    """Returns the (B, D) embeddings called `views`, in that order, in at least float32.

    Args:
      embeddings: arrays by view name, (B, D) each, of any float dtype.
      views: names of the views wanted.

    Raises:
      ValueError: a view is missing, not two-dimensional, or not of the shape of the first.
    """
    for view in views:
        if view not in embeddings:
            raise ValueError(f"view {view!r} is missing; wanted {views}, got {sorted(embeddings)}")
    taken = [embeddings[view] for view in views]
    for view, array in zip(views, taken, strict=True):
        if array.ndim != 2:
            raise ValueError(f"view {view!r} must be (batch, dim), got shape {array.shape}")
        if array.shape != taken[0].shape:
            raise ValueError(
                f"views of one batch must have one shape: {views[0]!r} has {taken[0].shape}, "
                f"{view!r} has {array.shape}"
            )
    # Once, here: gradients from several terms are then summed before they are rounded.
    return [array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in taken]


def take_mask(embeddings: Mapping[str, jax.Array], view: str, batch: int) -> jax.Array:
    """Returns the mask called `view`, bool (batch,).

    Raises:
      ValueError: it is missing, or of another shape.
    """
    if view not in embeddings:
        raise ValueError(f"view {view!r} is missing; got {sorted(embeddings)}")
    mask = jnp.asarray(embeddings[view], bool)
    if mask.shape != (batch,):
        raise ValueError(f"view {view!r} must be ({batch},), got shape {mask.shape}")
    return mask


def info_nce(
    queries_BxD: jax.Array,
    keys_BxD: jax.Array,
    log_scale: ArrayLike,
    keep_B: jax.Array | None = None,
) -> jax.Array:
    """Returns InfoNCE in one direction: each query is to pick its own key out of the batch.

    Args:
      queries_BxD: unit rows, any float dtype; row i belongs to row i of the keys.
      keys_BxD: unit rows, any float dtype.
      log_scale: scalar, logarithm of the inverse temperature.
      keep_B: bool; the loss is that of a batch of these rows alone. None keeps all.

    Returns:
      Scalar of at least float32: the mean over i of -log softmax_j(exp(log_scale) q_i k_j)[i].

    Raises:
      UserError: the devices of the mesh cannot share the batch.

    References:
      Van den Oord et al., `Representation Learning with Contrastive Predictive Coding
      <https://arxiv.org/abs/1807.03748>`_, equation 4.
    """
    queries_BxD, keys_BxD, positives_B = _scale(queries_BxD, keys_BxD, log_scale)
    rows_B, _ = logsumexp_negatives(queries_BxD, keys_BxD, keep_B)
    return mean(jax.nn.softplus(rows_B - positives_B), keep_B)


def symmetric_info_nce(
    a_BxD: jax.Array,
    b_BxD: jax.Array,
    log_scale: ArrayLike,
    keep_B: jax.Array | None = None,
) -> jax.Array:
    """Returns the mean of InfoNCE in both directions, from one pass over the logits.

    Args:
      a_BxD: unit rows, any float dtype; row i belongs to row i of `b_BxD`.
      b_BxD: unit rows, any float dtype.
      log_scale: scalar, logarithm of the inverse temperature.
      keep_B: bool; the loss is that of a batch of these rows alone. None keeps all.

    Returns:
      Scalar of at least float32: `(info_nce(a, b) + info_nce(b, a)) / 2`.

    Raises:
      UserError: the devices of the mesh cannot share the batch.

    References:
      Radford et al., `Learning Transferable Visual Models From Natural Language Supervision
      <https://arxiv.org/abs/2103.00020>`_, figure 3.
    """
    a_BxD, b_BxD, positives_B = _scale(a_BxD, b_BxD, log_scale)
    rows_B, columns_B = logsumexp_negatives(a_BxD, b_BxD, keep_B)
    both_B = jax.nn.softplus(rows_B - positives_B) + jax.nn.softplus(columns_B - positives_B)
    return mean(both_B, keep_B) / 2


def mean(x_B: jax.Array, keep_B: jax.Array | None) -> jax.Array:
    """Returns the mean over the rows kept, all of them for None, 0 where none is."""
    if keep_B is None:
        return jnp.mean(x_B)
    return jnp.sum(jnp.where(keep_B, x_B, 0)) / jnp.maximum(jnp.sum(keep_B), 1)


def _scale(queries_BxD, keys_BxD, log_scale):
    """Returns the queries with the scale multiplied in, the keys, and the positive logits.

    The scale then gets its gradient through the queries: the tiles need not know of it.
    """
    # Embeddings may be bfloat16; logits and softmax never are.
    dtype = jnp.result_type(queries_BxD, keys_BxD, jnp.float32)
    queries_BxD = jnp.exp(jnp.asarray(log_scale, dtype)) * queries_BxD.astype(dtype)
    keys_BxD = keys_BxD.astype(dtype)
    return queries_BxD, keys_BxD, jnp.sum(queries_BxD * keys_BxD, axis=1)


def logsumexp_negatives(
    queries_BxD: jax.Array,
    keys_BxD: jax.Array,
    keep_B: jax.Array | None = None,
    *,
    tile: int = TILE,
) -> tuple[jax.Array, jax.Array]:
    """Returns the logsumexp, off the diagonal, of the rows and columns of `queries @ keys.T`.

    Differentiable in reverse mode. A batch of one tile on one device takes the dense path.

    Args:
      queries_BxD: float32 or float64, the scale already multiplied in.
      keys_BxD: like the queries.
      keep_B: bool; False hides a query and its key from all others. None keeps all.
      tile: most rows, and most columns, of logits that a device holds at once.

    Returns:
      Two (B,) arrays: for each query over the keys of others, for each key over the queries of
      others.

    Raises:
      UserError: the devices of the mesh cannot share the batch.
    """
    batch = queries_BxD.shape[0]
    # Places in the batch, by which a tile knows its positives; below 0: not to be seen.
    ids_B = jnp.arange(batch) if keep_B is None else jnp.where(keep_B, jnp.arange(batch), -1)
    axes = sharding.batch_axes()
    if axes:
        sharding.batch_devices(batch)
        ring = functools.partial(_tiled, axes=axes, tile=tile)
        shared = PartitionSpec(axes)
        return jax.shard_map(ring, in_specs=shared, out_specs=shared)(queries_BxD, keys_BxD, ids_B)
    if batch > tile:
        return _tiled(queries_BxD, keys_BxD, ids_B, axes, tile)
    logits_BxB = _logits((queries_BxD, ids_B), (keys_BxD, ids_B))
    return jax.nn.logsumexp(logits_BxB, axis=1), jax.nn.logsumexp(logits_BxB, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _tiled(queries_bxD, keys_bxD, ids_b, axes, tile):
    return _tiled_forward(queries_bxD, keys_bxD, ids_b, axes, tile)[0]


def _tiled_forward(queries_bxD, keys_bxD, ids_b, axes, tile):
    def step(row, column, row_sum, column_sum):
        logits_txt = _logits(row, column)
        return _add_exp(row_sum, logits_txt, axis=1), _add_exp(column_sum, logits_txt, axis=0)

    share = queries_bxD.shape[0]
    rows, columns = _tiles(queries_bxD, ids_b, tile), _tiles(keys_bxD, ids_b, tile)
    zeros_Txt = jnp.zeros_like(rows[0][..., 0])
    nothing = zeros_Txt - jnp.inf, zeros_Txt
    sums = _sweep(step, rows, columns, nothing, nothing, axes)
    rows_b, columns_b = (_join(peak + jnp.log(total), share) for peak, total in sums)
    return (rows_b, columns_b), (queries_bxD, keys_bxD, ids_b, rows_b, columns_b)


def _tiled_backward(axes, tile, residuals, cotangents):
    def step(row, column, d_query_txD, d_key_txD):
        row, row_sum_t, d_row_t = row
        column, column_sum_t, d_column_t = column
        logits_txt = _logits(row, column)
        d_logits_txt = (
            jnp.exp(logits_txt - row_sum_t[:, None]) * d_row_t[:, None]
            + jnp.exp(logits_txt - column_sum_t[None, :]) * d_column_t[None, :]
        )
        (query_txD, _), (key_txD, _) = row, column
        d_query_txD += _matmul(d_logits_txt, key_txD)
        d_key_txD += _matmul(d_logits_txt.T, query_txD)
        return d_query_txD, d_key_txD

    def side(vectors_bxD, sums_b, d_sums_b):
        return _tiles(vectors_bxD, ids_b, tile), _split(sums_b, tile), _split(d_sums_b, tile)

    queries_bxD, keys_bxD, ids_b, rows_b, columns_b = residuals
    rows = side(queries_bxD, rows_b, cotangents[0])
    columns = side(keys_bxD, columns_b, cotangents[1])
    nothing_TxtxD = jnp.zeros_like(rows[0][0])
    gradients = _sweep(step, rows, columns, nothing_TxtxD, nothing_TxtxD, axes)
    return *(_join(gradient, queries_bxD.shape[0]) for gradient in gradients), None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _sweep(step, rows, columns, row_sums, column_sums, axes):
    """Returns the sums after `step` has met every tile of rows with every tile of columns.

    Every leaf has its tiles in front, (T, t, ...). The rows stay on their device; the columns, and
    what is summed for them, go once around the ring of devices and end where they began.
    """

    def meet(row_sums, columns, column_sums):
        def one_row(column_sums, row_and_sum):
            row, row_sum = row_and_sum

            def one_column(row_sum, column_and_sum):
                column, column_sum = column_and_sum
                return step(row, column, row_sum, column_sum)

            row_sum, column_sums = lax.scan(one_column, row_sum, (columns, column_sums))
            return column_sums, row_sum

        column_sums, row_sums = lax.scan(one_row, column_sums, (rows, row_sums))
        return row_sums, column_sums

    if not axes:
        return meet(row_sums, columns, column_sums)
    devices = lax.axis_size(axes)
    to_the_next = [(device, (device + 1) % devices) for device in range(devices)]

    def hop(_, carry):
        row_sums, columns, column_sums = carry
        row_sums, column_sums = meet(row_sums, columns, column_sums)
        return row_sums, *lax.ppermute((columns, column_sums), axes, to_the_next)

    row_sums, _, column_sums = lax.fori_loop(0, devices, hop, (row_sums, columns, column_sums))
    return row_sums, column_sums


def _tiles(vectors_bxD, ids_b, tile):
    """Returns a device's vectors and their ids in tiles."""
    return _split(vectors_bxD, tile), _split(ids_b, tile, fill=-1)


def _split(x_b, tile, fill=0):
    """Returns (b, ...) as (T, t, ...) with t at most `tile`, the last tile filled up."""
    share = x_b.shape[0]
    tiles = -(-share // tile)
    widths = [(0, -share % tiles)] + [(0, 0)] * (x_b.ndim - 1)
    return jnp.pad(x_b, widths, constant_values=fill).reshape(tiles, -1, *x_b.shape[1:])


def _join(x_Txt, share):
    """Undoes `_split`."""
    return x_Txt.reshape(-1, *x_Txt.shape[2:])[:share]


def _logits(row, column):
    """Returns the logits of a tile; positives, and what is not to be seen, hidden."""
    (query_txD, query_id_t), (key_txD, key_id_t) = row, column
    positive_txt = query_id_t[:, None] == key_id_t[None, :]
    unseen_txt = (query_id_t < 0)[:, None] | (key_id_t < 0)[None, :]
    return jnp.where(positive_txt | unseen_txt, HIDDEN, _matmul(query_txD, key_txD.T))


def _matmul(a, b):
    # The default precision of an accelerator would round the factors to bfloat16 or TF32.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _add_exp(running, logits_txt, axis):
    """Adds exp(logits) along `axis` to a sum held as its peak logit and a total relative to it."""
    peak_t, total_t = running
    higher_t = jnp.maximum(peak_t, logits_txt.max(axis))
    terms_txt = jnp.exp(logits_txt - jnp.expand_dims(higher_t, axis))
    return higher_t, total_t * jnp.exp(peak_t - higher_t) + terms_txt.sum(axis)

"""InfoNCE, the one contrastive objective behind every loss.

Dimensions: B the global batch, D the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def take_views(embeddings: Mapping[str, jax.Array], views: Sequence[str]) -> list[jax.Array]:
    """Returns the (B, D) embeddings called `views`, in that order.

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
    return taken


def info_nce(queries_BxD: jax.Array, keys_BxD: jax.Array, log_scale: jax.typing.ArrayLike):
    """Returns InfoNCE in one direction: each query is to pick its own key out of the batch.

    Args:
      queries_BxD: unit rows, any float dtype; row i belongs to row i of the keys.
      keys_BxD: unit rows, any float dtype.
      log_scale: scalar, logarithm of the inverse temperature.

    Returns:
      Scalar of at least float32: the mean over i of -log softmax_j(exp(log_scale) q_i k_j)[i].

    References:
      Van den Oord et al., `Representation Learning with Contrastive Predictive Coding
      <https://arxiv.org/abs/1807.03748>`_, equation 4.
    """
    logits_BxB = _logits(queries_BxD, keys_BxD, log_scale)
    return jnp.mean(jax.nn.logsumexp(logits_BxB, axis=1) - jnp.diagonal(logits_BxB))


def symmetric_info_nce(a_BxD: jax.Array, b_BxD: jax.Array, log_scale: jax.typing.ArrayLike):
    """Returns the mean of InfoNCE in both directions, from one pass over the logits.

    Args:
      a_BxD: unit rows, any float dtype; row i belongs to row i of `b_BxD`.
      b_BxD: unit rows, any float dtype.
      log_scale: scalar, logarithm of the inverse temperature.

    Returns:
      Scalar of at least float32: `(info_nce(a, b) + info_nce(b, a)) / 2`.

    References:
      Radford et al., `Learning Transferable Visual Models From Natural Language Supervision
      <https://arxiv.org/abs/2103.00020>`_, figure 3.
    """
    logits_BxB = _logits(a_BxD, b_BxD, log_scale)
    rows_B, columns_B = (jax.nn.logsumexp(logits_BxB, axis=axis) for axis in (1, 0))
    return jnp.mean((rows_B + columns_B) / 2 - jnp.diagonal(logits_BxB))


def _logits(queries_BxD, keys_BxD, log_scale):
    dtype = jnp.promote_types(queries_BxD.dtype, jnp.float32)
    queries_BxD = jnp.exp(jnp.asarray(log_scale, dtype)) * queries_BxD.astype(dtype)
    return jnp.matmul(queries_BxD, keys_BxD.astype(dtype).T, precision=jax.lax.Precision.HIGHEST)

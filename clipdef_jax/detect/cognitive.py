"""Cognitive distillation: how little of a picture a model needs to see the same in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from clipdef_jax.errors import UserError

_BATCH = 64


def cognitive_distillation(
    pixels: Any,
    encode: Callable[[Any], Any],
    *,
    seed: int = 0,
    steps: int = 100,
    learning_rate: float = 0.1,
    gamma: float = 1e-3,
    beta: float = 100.0,
) -> np.ndarray:
    """Returns the L1 norm of the smallest mask under which each picture keeps its embedding.

    Outside the mask a picture is a random flat colour, a new one each step. The mask minimises
    the mean absolute change of the embedding, gamma times its own L1 norm, and beta times its
    total variation. A trigger takes little room, so poisoned pictures get small masks.

    Args:
      pixels: (N, H, W, C) float in [0, 1].
      encode: maps pixels (B, H, W, C) to embeddings (B, D); is traced.
      seed: of the colours.
      steps: steps of Adam.
      learning_rate: of Adam, whose two decay rates are 0.1.
      gamma: weight of the norm.
      beta: weight of the total variation.

    Returns:
      (N,) float32, 0 to H * W.

    Raises:
      UserError: the pixels are of another shape, or not finite.

    References:
      Huang et al. 2023, `Distilling Cognitive Backdoor Patterns within an Image
      <https://arxiv.org/abs/2301.10908>`_; weights from the released code of the CLIP detectors.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise UserError(f"pixels are {pixels.shape}, expected (pictures, height, width, channels)")
    if not np.isfinite(pixels).all():
        raise UserError("pixels: some are not finite; expected floats in [0, 1]")
    size = min(_BATCH, len(pixels))
    distil = jax.jit(
        functools.partial(_masks, encode, steps, optax.adam(learning_rate, 0.1, 0.1), gamma, beta)
    )
    norms = []
    for start in range(0, len(pixels), size):
        batch = pixels[start : start + size].astype(np.float32)
        rng = jax.random.fold_in(jax.random.key(seed), start)
        # The last batch is filled up, so that there is one program.
        filled = np.resize(batch, (size, *batch.shape[1:]))
        norms.append(np.asarray(distil(filled, rng))[: len(batch)])
    return np.concatenate(norms)


def _masks(encode, steps, adam, gamma, beta, pixels, rng):
    wanted = encode(pixels)

    def loss(logits, rng):
        mask = _mask(logits)
        colour = jax.random.uniform(rng, (len(pixels), 1, 1, pixels.shape[3]))
        seen = encode(pixels * mask + (1 - mask) * colour)
        variation = sum(
            jnp.sum(jnp.diff(mask, axis=axis) ** 2, axis=(1, 2, 3)) for axis in (1, 2)
        ) / (mask.shape[1] * mask.shape[2])
        change = jnp.mean(jnp.abs(seen - wanted), axis=1)
        return jnp.sum(change + gamma * jnp.sum(mask, axis=(1, 2, 3)) + beta * variation)

    def step(carry, rng):
        logits, state = carry
        updates, state = adam.update(jax.grad(loss)(logits, rng), state)
        return (optax.apply_updates(logits, updates), state), None

    logits = jnp.ones((*pixels.shape[:3], 1))
    (logits, _), _ = lax.scan(step, (logits, adam.init(logits)), jax.random.split(rng, steps))
    return jnp.sum(_mask(logits), axis=(1, 2, 3))


def _mask(logits):
    return (jnp.tanh(logits) + 1) / 2

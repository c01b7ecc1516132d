"""Two Gaussians with one variance, fitted to a stream of numbers batch by batch.

The state of the fit are four means over the stream, the newest batches weighing most, of numbers x
and of the probability r that x is of the higher Gaussian: E[r], E[r x], E[x] and E[x^2]. With a
variance in common r rises with x; with two the wider Gaussian would own both tails.

References:
  Cappé and Moulines, `On-line Expectation-Maximization Algorithm for Latent Data Models
  <https://arxiv.org/abs/0712.4273>`_, with a constant step size: the stream may drift.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Of the variance: numbers that are all equal stay finite.
LEAST_VARIANCE = 1e-6
# Of r, and of 1 - r: neither Gaussian runs empty, and one that nearly does can come back.
LEAST_SHARE = 1e-4


def empty() -> jax.Array:
    """Returns the state before the first batch, float32 (4,)."""
    return jnp.zeros(4, jnp.float32)


def update(moments: jax.Array, x_B: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    """Takes one step of stepwise EM.

    The first batch is split at its mean, and counts in full.

    Args:
      moments: the state, float32 (4,).
      x_B: any float dtype.
      rate: weight of this batch in the next state.

    Returns:
      The next state, and the weight that the batch got.
    """
    begun = moments.any()
    above_B = (x_B > jnp.mean(x_B)).astype(x_B.dtype)
    r_B = jnp.where(begun, posterior(moments, x_B), above_B).clip(LEAST_SHARE, 1 - LEAST_SHARE)
    seen = jnp.stack([jnp.mean(y_B) for y_B in (r_B, r_B * x_B, x_B, x_B**2)])
    step = jnp.where(begun, rate, 1.0).astype(moments.dtype)
    return moments + step * (seen.astype(moments.dtype) - moments), step


def posterior(moments: jax.Array, x_B: jax.Array) -> jax.Array:
    """Returns the probability of the higher Gaussian, (B,); of a state that is not empty."""
    weight, low, high, variance = parameters(moments)
    # However the stream has drifted, the higher is the one that higher numbers belong to.
    slope = jnp.abs(high - low) / variance
    odds_B = jnp.log(weight / (1 - weight)) + slope * (x_B - (low + high) / 2)
    return jax.nn.sigmoid(odds_B)


def parameters(moments: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the higher Gaussian's weight, the lower and the higher mean, and the variance."""
    weight, of_high, mean, square = moments
    high, low = of_high / weight, (mean - of_high) / (1 - weight)
    variance = square - weight * high**2 - (1 - weight) * low**2
    return weight, low, high, jnp.maximum(variance, LEAST_VARIANCE)

"""A mixture of two Gaussians, fitted to numbers by expectation-maximisation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# A standard deviation of a hundredth: no Gaussian shrinks to a few numbers that are equal.
LEAST_VARIANCE = 1e-4
# Of all numbers, for each of the two: neither runs empty.
LEAST_WEIGHT = 1e-6


class Mixture(NamedTuple):
    """Weights, means and variances, (2,) each; the second Gaussian is the one that began higher."""

    weight: jax.Array
    mean: jax.Array
    variance: jax.Array


def fit(x_N: jax.Array, rounds: int = 100) -> Mixture:
    """Returns the mixture of some numbers; finite whatever they are.

    EM begins with those that are above their mean, and those that are not.

    Args:
      x_N: float32; NaN does not count, and one at least must.
      rounds: of EM.
    """
    counts_N = ~jnp.isnan(x_N)
    x_N = jnp.where(counts_N, x_N, 0)

    def maximise(higher_N: jax.Array) -> Mixture:
        higher_N = higher_N.clip(LEAST_WEIGHT, 1 - LEAST_WEIGHT)
        share_2xN = jnp.where(counts_N, jnp.stack([1 - higher_N, higher_N]), 0)
        count_2 = jnp.sum(share_2xN, axis=1)
        mean_2 = jnp.sum(share_2xN * x_N[None], axis=1) / count_2
        square_2 = jnp.sum(share_2xN * (x_N[None] - mean_2[:, None]) ** 2, axis=1)
        variance_2 = jnp.maximum(square_2 / count_2, LEAST_VARIANCE)
        return Mixture(count_2 / jnp.sum(counts_N), mean_2, variance_2)

    above_N = x_N > jnp.mean(x_N, where=counts_N)
    return lax.fori_loop(
        0,
        rounds,
        lambda _, mixture: maximise(posterior(mixture, x_N)),
        maximise(above_N.astype(x_N.dtype)),
    )


def posterior(mixture: Mixture, x_N: jax.Array) -> jax.Array:
    """Returns the probability of each number that it is of the second Gaussian, (N,)."""
    weight_2, mean_2, variance_2 = (p_2[:, None] for p_2 in mixture)
    distance_2xN = (x_N[None] - mean_2) ** 2 / variance_2
    low_N, high_N = jnp.log(weight_2) - (jnp.log(variance_2) + distance_2xN) / 2
    return jax.nn.sigmoid(high_N - low_N)

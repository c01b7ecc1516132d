"""The mixture against EM written out, and with nothing to tell apart."""

import jax
import numpy as np
import pytest

from clipdef_jax.losses import mixture

ROUNDS = 100
fit = jax.jit(mixture.fit, static_argnames="rounds")


def two_groups(share=0.3, gap=0.35, size=400, seed=0):
    """A share of the numbers around 0.1, the others higher and closer together."""
    rng = np.random.default_rng(seed)
    is_low = rng.random(size) < share
    x = np.where(
        is_low, 0.1 + 0.09 * rng.normal(size=size), 0.1 + gap + 0.05 * rng.normal(size=size)
    )
    return x.astype(np.float32)


def em(x):
    """EM in float64, one number after the other: weights, means and variances of both."""
    x = np.float64(x)
    r = np.stack([x <= x.mean(), x > x.mean()])
    for _ in range(ROUNDS + 1):
        weight = r.mean(axis=1)
        mean = (r * x).sum(axis=1) / r.sum(axis=1)
        variance = [np.sum(r[k] * (x - mean[k]) ** 2) / np.sum(r[k]) for k in (0, 1)]
        densities = np.stack([weight[k] * normal(x, mean[k], variance[k]) for k in (0, 1)])
        r = densities / densities.sum(axis=0)
    return (weight, mean, variance), r[1]


def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance)


@pytest.mark.parametrize(
    "groups", [{}, {"share": 0.03}, {"share": 0.9}, {"gap": 0.15}], ids=["", "few", "many", "near"]
)
def test_it_is_what_em_finds(groups):
    x = two_groups(**groups)
    expected, higher = em(x)
    fitted = fit(x, rounds=ROUNDS)
    # A probability is kept off 0 and 1 by a millionth, which the variance of twelve numbers feels.
    for got, wanted in zip(fitted, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=5e-3)
    np.testing.assert_allclose(mixture.posterior(fitted, x), higher, atol=1e-3)


def test_it_finds_the_groups_that_there_are():
    weight, mean, variance = fit(two_groups(size=4000))
    np.testing.assert_allclose(weight, (0.3, 0.7), atol=0.03)
    np.testing.assert_allclose(mean, (0.1, 0.45), atol=0.02)
    np.testing.assert_allclose(np.sqrt(variance), (0.09, 0.05), atol=0.01)


def test_what_is_not_known_does_not_count():
    x = two_groups()
    some = np.where(np.arange(400) < 150, x, np.nan).astype(np.float32)
    alone = mixture.fit(x[:150])
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4), fit(some), alone)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(400),
        np.full(400, 0.3),
        np.r_[np.full(399, 0.3), 0.9],
        np.r_[np.ones(399), -1.0],
        np.r_[np.full(399, np.nan), 0.5],
        np.repeat([-1.0, 1.0], 200),
    ],
    ids=["zero", "equal", "one-above", "one-below", "one", "two"],
)
def test_what_is_not_two_groups_stays_finite(x):
    x = x.astype(np.float32)
    fitted = fit(x)
    assert ((fitted.weight > 0) & (fitted.weight < 1)).all()
    assert np.isfinite(fitted.mean).all()
    assert (fitted.variance >= np.float32(mixture.LEAST_VARIANCE)).all()
    posterior = mixture.posterior(fitted, x[~np.isnan(x)])
    assert ((posterior >= 0) & (posterior <= 1)).all()

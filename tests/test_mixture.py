"""The mixture fitted to a stream: against EM written out, as it drifts, and with nothing to fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax.losses import mixture


def two_groups(rng, size=400):
    """Three tenths around 0.1, the others around 0.45."""
    x = np.where(rng.random(size) < 0.3, 0.1, 0.45) + 0.06 * rng.normal(size=size)
    return x.astype(np.float32)


@jax.jit
def fit(batches_NxB):
    """The state after a stream of batches."""

    def step(moments, x_B):
        return mixture.update(moments, x_B, rate=0.1)[0], None

    return jax.lax.scan(step, mixture.empty(), batches_NxB)[0]


def em(x, rounds=300):
    """EM in float64 on numbers held all at once: weight, low, high, and the common variance."""
    x = np.float64(x)
    r = np.where(x > x.mean(), 1.0, 0.0)
    for _ in range(rounds):
        weight = r.mean()
        high, low = (r * x).sum() / r.sum(), ((1 - r) * x).sum() / (1 - r).sum()
        variance = np.mean(r * (x - high) ** 2 + (1 - r) * (x - low) ** 2)
        densities = [
            share * np.exp(-((x - mean) ** 2) / (2 * variance))
            for share, mean in ((1 - weight, low), (weight, high))
        ]
        r = densities[1] / sum(densities)
    return weight, low, high, variance


def test_the_same_batch_again_and_again_is_fitted_as_em_fits_it():
    x = two_groups(np.random.default_rng(0))
    fitted = mixture.parameters(fit(np.tile(x, (300, 1))))
    # A probability is kept off 0 and 1 by a ten-thousandth, which the variance feels most.
    np.testing.assert_allclose(fitted, em(x), rtol=5e-3)


def test_a_stream_is_fitted_as_em_fits_all_of_it():
    rng = np.random.default_rng(1)
    batches = np.stack([two_groups(rng) for _ in range(100)])
    weight, low, high, variance = mixture.parameters(fit(batches))
    expected = em(batches.ravel(), rounds=50)
    np.testing.assert_allclose((weight, low, high), expected[:3], atol=0.02)
    np.testing.assert_allclose(variance, expected[3], rtol=0.1)


def test_posterior_is_bayes_rule_and_rises():
    x = two_groups(np.random.default_rng(2))
    moments = fit(x[None])
    weight, low, high, variance = np.float64(mixture.parameters(moments))
    at = np.linspace(-1, 1, 400)
    like = [np.exp(-((at - mean) ** 2) / (2 * variance)) for mean in (low, high)]
    with np.errstate(invalid="ignore"):
        expected = weight * like[1] / (weight * like[1] + (1 - weight) * like[0])
    got = np.asarray(mixture.posterior(moments, jnp.asarray(at, jnp.float32)))
    met = np.isfinite(expected)
    np.testing.assert_allclose(got[met], expected[met], atol=1e-4)
    assert (np.diff(got) >= 0).all()
    # Were the means ever crossed, high numbers would still be the higher's.
    crossed = moments.at[1].set(moments[2] - moments[1])
    assert (np.diff(mixture.posterior(crossed, at)) >= 0).all()


def test_a_drifting_stream_is_followed():
    rng = np.random.default_rng(3)
    batches = np.stack([two_groups(rng) + drift for drift in np.linspace(-0.2, 0.3, 400)])
    weight, low, high, _ = mixture.parameters(fit(batches))
    np.testing.assert_allclose((weight, low, high), (0.7, 0.4, 0.75), atol=0.04)


@pytest.mark.parametrize(
    "x",
    [np.zeros(400), np.full(400, 0.3), np.r_[np.full(399, 0.3), 0.9], np.r_[np.ones(399), -1.0]],
    ids=["zero", "equal", "one-above", "one-below"],
)
def test_what_is_not_two_groups_stays_finite(x):
    x = x.astype(np.float32)
    rest = np.tile(x[:1], (400, 400))  # Then one of the two has nothing left.
    for moments in (fit(x[None]), fit(np.vstack([x[None], rest]))):
        weight, low, high, variance = mixture.parameters(moments)
        assert 0 < weight < 1
        assert np.isfinite([low, high]).all()
        assert variance >= mixture.LEAST_VARIANCE
        posterior = mixture.posterior(moments, x)
        assert ((posterior >= 0) & (posterior <= 1)).all()


def test_a_group_that_was_gone_comes_back():
    rng = np.random.default_rng(4)
    one = 0.45 + 0.06 * rng.normal(size=(300, 400))
    two = np.stack([two_groups(rng) for _ in range(300)])
    weight, low, high, _ = mixture.parameters(fit(np.float32(np.vstack([two, one, two]))))
    np.testing.assert_allclose((weight, low, high), (0.7, 0.1, 0.45), atol=0.03)

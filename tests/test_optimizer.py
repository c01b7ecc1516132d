"""The schedule, the decay mask, and AdamW against a reference written out."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clipdef_jax.train import optimizer


def test_schedule_ends():
    lr = optimizer.warmup_cosine(2.0, warmup=4, total=20)
    np.testing.assert_allclose([lr(n) for n in range(4)], [0.5, 1.0, 1.5, 2.0])
    assert float(lr(4)) < 2.0
    assert float(lr(19)) == pytest.approx(0.0, abs=1e-6)
    middle = [float(lr(n)) for n in range(4, 20)]
    assert middle == sorted(middle, reverse=True)
    # Half way through the cosine the rate is half the peak.
    assert float(lr(11)) == pytest.approx(1.0)


def test_schedule_without_warmup():
    lr = optimizer.warmup_cosine(1.0, warmup=0, total=10)
    assert 0.9 < float(lr(0)) < 1.0
    assert float(lr(9)) == pytest.approx(0.0, abs=1e-6)


def test_decay_mask():
    params = {
        "image": {"mlp": {"kernel": 1, "bias": 1}, "ln_1": {"scale": 1, "bias": 1}},
        "text": {"token_embedding": 1},
        "log_scale": 1,
    }
    assert optimizer.decay_mask(params) == {
        "image": {"mlp": {"kernel": True, "bias": False}, "ln_1": {"scale": False, "bias": False}},
        "text": {"token_embedding": True},
        "log_scale": False,
    }


def test_adamw_with_clipping_equals_the_formula():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(0.1), weight_decay=0.5, clip_norm=1.0)
    state = tx.init({k: jnp.asarray(v, jnp.float32) for k, v in params.items()})
    now = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v2 = {k: np.zeros_like(v) for k, v in params.items()}
    for t in range(1, 4):
        gradient = {k: 3 * rng.normal(size=v.shape) for k, v in params.items()}
        updates, state = tx.update(
            {k: jnp.asarray(g, jnp.float32) for k, g in gradient.items()}, state, now
        )
        now = optax.apply_updates(now, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for k, g in gradient.items():
            g = g / max(norm, 1.0)
            m[k] = 0.9 * m[k] + 0.1 * g
            v2[k] = 0.999 * v2[k] + 0.001 * g**2
            step = (m[k] / (1 - 0.9**t)) / (np.sqrt(v2[k] / (1 - 0.999**t)) + 1e-8)
            params[k] = params[k] - 0.1 * (step + (0.5 * params[k] if k == "kernel" else 0))
    for k in params:
        np.testing.assert_allclose(now[k], params[k], rtol=2e-5)


def test_accumulation_averages_batches():
    params = {"kernel": jnp.ones((2, 2))}
    once = optimizer.make_optimizer(lambda _: jnp.asarray(0.1), weight_decay=0.0)
    twice = optimizer.make_optimizer(lambda _: jnp.asarray(0.1), weight_decay=0.0, accumulate=2)
    a, b = jnp.full((2, 2), 1.0), jnp.array([[3.0, -1.0], [2.0, 0.5]])
    expected, _ = once.update({"kernel": (a + b) / 2}, once.init(params), params)
    state = twice.init(params)
    nothing, state = twice.update({"kernel": a}, state, params)
    np.testing.assert_array_equal(nothing["kernel"], 0)
    got, _ = twice.update({"kernel": b}, state, params)
    np.testing.assert_allclose(got["kernel"], expected["kernel"], rtol=1e-6)

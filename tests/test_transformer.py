"""The residual blocks, against a slow reference."""

import math

import jax
import numpy as np
import pytest

from clipdef_jax.models.transformer import LayerNorm, Transformer

B, L, W, HEADS, LAYERS = 2, 5, 12, 3, 2


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def attention(x, params, causal):
    """One text, one head, one position at a time."""
    query, key, value = np.split(linear(x, params["qkv"]), 3, axis=-1)
    size = W // HEADS
    mixed = np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for i in range(L):
            seen = i + 1 if causal else L
            logits = key[:seen, part] @ query[i, part] / math.sqrt(size)
            weights = np.exp(logits - logits.max())
            mixed[i, part] = weights @ value[:seen, part] / weights.sum()
    return linear(mixed, params["out"])


def activate(x, activation):
    if activation == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def reference(x, params, activation, causal):
    for layer in range(LAYERS):
        block = params[str(layer)]
        x = x + attention(layer_norm(x, block["ln_1"]), block["attention"], causal)
        hidden = activate(linear(layer_norm(x, block["ln_2"]), block["mlp"]["up"]), activation)
        x = x + linear(hidden, block["mlp"]["down"])
    return x


@pytest.mark.parametrize(("activation", "causal"), [("quick_gelu", True), ("gelu", False)])
def test_blocks_equal_the_slow_reference(activation, causal):
    module = Transformer(
        layers=LAYERS, heads=HEADS, mlp_width=20, activation=activation, causal=causal, eps=1e-5,
        remat=False, dtype="float32",
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(B, L, W)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    generator = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.4, leaf.shape), shapes)
    params = jax.tree.map(np.float32, params)

    exact = jax.tree.map(lambda value: np.asarray(value, np.float64), params)
    expected = [reference(row, exact, activation, causal) for row in x.astype(np.float64)]
    np.testing.assert_allclose(
        jax.jit(module.apply)({"params": params}, x), expected, rtol=1e-4, atol=2e-5
    )


def test_layer_norm_stays_exact_when_bfloat16_goes_through():
    x = (1000 + np.random.default_rng(0).normal(size=(3, 64))).astype("bfloat16")
    params = {"scale": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}
    normed = LayerNorm(1e-5, "bfloat16").apply({"params": params}, x)
    assert normed.dtype == "bfloat16"
    expected = layer_norm(x.astype(np.float64), params)
    np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=1e-2, atol=1e-2)

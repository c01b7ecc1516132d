"""The image transformer's own part: patches, positions and the class token."""

import jax
import numpy as np
import pytest

from clipdef_jax.models.transformer import Transformer
from clipdef_jax.models.vit import VisionTransformer

SIDE, PATCH, WIDTH = 12, 4, 8


@pytest.fixture(scope="module")
def tower():
    blocks = Transformer(
        layers=1, heads=2, mlp_width=16, activation="gelu", causal=False, eps=1e-5, remat=False,
        dtype="float32",
    )  # fmt: skip
    module = VisionTransformer(PATCH, WIDTH, 5, blocks, 1e-5, "float32")
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))
    return module, jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)


def test_patches_equal_a_strided_convolution(tower):
    module, variables = tower
    pixels = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    params = variables["params"]
    convolved = jax.lax.conv_general_dilated(
        pixels, params["patch_embedding"], (PATCH, PATCH), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).reshape(2, -1, WIDTH)  # fmt: skip
    token = np.broadcast_to(params["class_embedding"], (2, 1, WIDTH))
    x = np.concatenate([token, convolved], 1) + params["positional_embedding"][None]
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = expected * params["ln_pre"]["scale"] + params["ln_pre"]["bias"]

    def apply(variables, pixels):
        return module.apply(
            variables, pixels, capture_intermediates=lambda module, _: module.name == "ln_pre"
        )

    _, captured = jax.jit(apply)(variables, pixels)
    actual = captured["intermediates"]["ln_pre"]["__call__"][0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_every_patch_reaches_the_feature(tower):
    module, variables = tower
    pixels = np.random.default_rng(1).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: module.apply(variables, x).sum()))(pixels)
    assert np.all(np.abs(gradient).sum(-1) > 0)


def test_feature_depends_on_where_a_patch_is(tower):
    module, variables = tower
    pixels = np.random.default_rng(2).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    moved = np.roll(pixels, PATCH, axis=2)
    apply = jax.jit(module.apply)
    features, elsewhere = (apply(variables, x) for x in (pixels, moved))
    assert features.shape == (1, 5)
    assert np.abs(features - elsewhere).max() > 1e-3

"""The modified ResNet: batch statistics, pooling, and one device against eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clipdef_jax import models
from clipdef_jax.models.resnet import AttentionPool, BatchNorm, Bottleneck, Conv, halve

CLIP = models.get(
    "RN-Ti", image_width=4, image_heads=4, embed_dim=6, image_size=64,
    text_width=8, text_layers=1, text_heads=2, vocab_size=20,
)  # fmt: skip


def random_like(shapes):
    """Parameters none of which is at a special value; scales and variances are positive."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        value = generator.normal(0, 0.3, leaf.shape)
        positive = path[-1].key in ("scale", "var")
        return np.float32(0.3 + np.abs(value) if positive else value)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_params(module, *inputs):
    return random_like(jax.eval_shape(module.init, jax.random.key(0), *inputs))


@pytest.fixture(scope="module")
def params():
    return random_like(jax.eval_shape(CLIP.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype(np.float32)


def batch_norm(x, scale, bias):
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias


def test_batch_norm_counts_as_pytorch_does():
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 2, 5))
    variables = random_params(BatchNorm(True, "float32"), x)
    weights, running = variables["params"], variables["batch_stats"]

    y, updated = BatchNorm(True, "float32").apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, batch_norm(x, weights["scale"], weights["bias"]), atol=1e-5)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * running["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * running["var"] + 0.1 * var, rtol=1e-5)

    y = BatchNorm(False, "float32").apply(variables, x)
    expected = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    np.testing.assert_allclose(y, expected * weights["scale"] + weights["bias"], atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_convolution_equals_its_definition(size, stride):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    module = Conv(4, size, "float32", stride)
    variables = random_params(module, x)
    kernel = variables["params"]["kernel"]
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    expected = np.zeros((2, 6 // stride, 6 // stride, 4))
    for i in range(6 // stride):
        for j in range(6 // stride):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            expected[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-5)


def test_halving_averages_squares():
    x = np.arange(2 * 4 * 6 * 1.0).reshape(2, 4, 6, 1)
    expected = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(halve(x), expected)


def test_a_fresh_block_is_the_identity_for_what_is_positive():
    x = np.abs(np.random.default_rng(0).normal(size=(2, 4, 4, 16))).astype(np.float32)
    fresh = Bottleneck(4, 1, False, "float32").init(jax.random.key(0), x)
    assert "downsample_conv" not in fresh["params"]
    y, _ = Bottleneck(4, 1, True, "float32").apply(fresh, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, x)


def test_attention_pool_equals_the_slow_reference():
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 8)).astype(np.float32)
    module = AttentionPool(heads=2, embed_dim=3, dtype="float32")
    variables = random_params(module, x)
    params = variables["params"]
    expected = []
    for image in x.astype(np.float64):
        rows = image.reshape(4, 8)
        rows = np.concatenate([rows.mean(0, keepdims=True), rows]) + params["positional_embedding"]
        query, key, value = (
            rows @ params[name]["kernel"] + params[name]["bias"]
            for name in ("query", "key", "value")
        )
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            logits = key[:, part] @ query[0, part] / 2
            weights = np.exp(logits - logits.max())
            heads.append(weights @ value[:, part] / weights.sum())
        expected.append(np.concatenate(heads) @ params["out"]["kernel"] + params["out"]["bias"])
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4)


@functools.partial(jax.jit, static_argnames="clip")
def train(params, pixels, clip=CLIP):
    """Returns features and statistics."""
    return clip.encode_image_train(params, pixels)


@functools.partial(jax.jit, static_argnames="clip")
def differentiate(params, pixels, clip=CLIP):
    """Returns the gradient of a loss, and statistics."""
    weights, statistics = models.split_statistics(params)

    def loss(weights):
        features, updated = clip.encode_image_train(weights | statistics, pixels)
        return jnp.square(features).mean(), updated

    return jax.grad(loss, has_aux=True)(weights)


def assert_close(ours, theirs):
    """Holds up to the rounding of sums over thousands of pixels, taken in another order."""
    for one, other in zip(ours, theirs, strict=True):
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
        atol = 1e-5 * largest
        jax.tree.map(
            lambda a, b, atol=atol: np.testing.assert_allclose(a, b, atol=atol), one, other
        )


def test_statistics_are_of_the_global_batch(params, pixels):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(pixels, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    assert_close(train(params, pixels), train(replicated, sharded))


def test_a_step_moves_every_statistic(params, pixels):
    _, updated = train(params, pixels)
    _, statistics = models.split_statistics(params)
    moved = jax.tree.map(lambda a, b: np.all(a != b), updated, statistics)
    assert all(jax.tree.leaves(moved))


def test_remat_changes_neither_gradient_nor_statistics(params, pixels):
    remat = models.CLIP(CLIP.config, remat=True)
    assert_close(differentiate(params, pixels), differentiate(params, pixels, remat))


def test_evaluation_sees_one_picture_at_a_time(params, pixels):
    encode = jax.jit(CLIP.encode_image)
    others = np.concatenate([pixels[:1], pixels[1:] * 2])
    np.testing.assert_allclose(encode(params, pixels)[0], encode(params, others)[0], atol=1e-5)


def test_bfloat16_keeps_statistics_and_features_in_float32(params, pixels):
    clip = models.CLIP(CLIP.config, dtype="bfloat16")
    features, statistics = train(params, pixels, clip)
    exact, _ = train(params, pixels)
    assert features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(statistics))
    error = np.abs(features - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.1

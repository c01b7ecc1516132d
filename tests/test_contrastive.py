"""InfoNCE against a slow float64 reference: dense, in tiles, around a ring of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from clipdef_jax.errors import UserError
from clipdef_jax.losses import contrastive
from clipdef_jax.losses.contrastive import info_nce, logsumexp_negatives, symmetric_info_nce


def pairs(batch, dim=24, noise=1.0):
    rng = np.random.default_rng(batch)
    a = rng.normal(size=(batch, dim))
    b = a + noise * rng.normal(size=(batch, dim))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a.astype(np.float32), b.astype(np.float32)


def reference(a, b, log_scale, weights=(1.0, 0.0)):
    """Weighted mean of both directions and its gradients, in float64 over all the logits."""
    a, b, scale = np.float64(a), np.float64(b), np.exp(np.float64(log_scale))
    logits = scale * a @ b.T
    value, d_logits = 0.0, 0.0
    for axis, weight in zip((1, 0), weights, strict=True):
        terms = np.exp(logits - logits.max(axis, keepdims=True))
        softmax = terms / terms.sum(axis, keepdims=True)
        value -= weight * np.mean(np.log(np.diagonal(softmax)))
        d_logits = d_logits + weight * (softmax - np.eye(len(a))) / len(a)
    return value, (scale * d_logits @ b, scale * d_logits.T @ a, np.sum(d_logits * logits))


ONE_WAY = info_nce, (1.0, 0.0)
SYMMETRIC = symmetric_info_nce, (0.5, 0.5)


def value_and_gradients(loss):
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def assert_equal_to_reference(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def mesh_of(**axes):
    shape = tuple(axes.values())
    return jax.make_mesh(
        shape,
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=jax.devices()[: int(np.prod(shape))],
    )


@pytest.fixture
def tiles_of(monkeypatch):
    """Makes tiles so small that a small batch has many."""

    def set_tile(tile):
        small = functools.partial(logsumexp_negatives, tile=tile)
        monkeypatch.setattr(contrastive, "logsumexp_negatives", small)

    return set_tile


@pytest.mark.parametrize(("loss", "weights"), [ONE_WAY, SYMMETRIC])
def test_dense_equals_reference(loss, weights):
    a, b = pairs(40)
    call = value_and_gradients(loss)
    for log_scale in np.log(np.float32([1.0, 14.3, 30.0])):
        assert_equal_to_reference(call(a, b, log_scale), reference(a, b, log_scale, weights))


# 40 rows: one row a tile; a last tile to fill up; two tiles of twenty.
@pytest.mark.parametrize(
    ("tile", "loss", "weights"), [(1, *SYMMETRIC), (7, *ONE_WAY), (7, *SYMMETRIC), (39, *ONE_WAY)]
)
def test_tiles_equal_reference(tile, loss, weights, tiles_of):
    tiles_of(tile)
    a, b = pairs(40)
    actual = value_and_gradients(loss)(a, b, 2.5)
    assert_equal_to_reference(actual, reference(a, b, np.float32(2.5), weights))


@pytest.mark.parametrize(
    ("axes", "tile", "loss", "weights"),
    [
        ({"data": 1}, 64, *SYMMETRIC),
        ({"data": 2}, 64, *SYMMETRIC),
        ({"data": 4}, 3, *ONE_WAY),
        ({"data": 8}, 64, *SYMMETRIC),
        ({"data": 2, "fsdp": 4}, 3, *SYMMETRIC),
        ({"fsdp": 2, "model": 2, "data": 2}, 64, *ONE_WAY),
    ],
)
def test_ring_equals_reference(axes, tile, loss, weights, tiles_of):
    tiles_of(tile)
    a, b = pairs(40)
    mesh = mesh_of(**axes)
    sharded = PartitionSpec(tuple(axis for axis in ("data", "fsdp") if axis in axes))
    with jax.set_mesh(mesh):
        x, y = jax.device_put((a, b), NamedSharding(mesh, sharded))
        actual = value_and_gradients(loss)(x, y, 2.5)
    assert_equal_to_reference(actual, reference(a, b, np.float32(2.5), weights))


def test_inputs_that_are_not_sharded_are_welcome_under_a_mesh():
    a, b = pairs(16)
    with jax.set_mesh(mesh_of(data=4)):
        actual = value_and_gradients(info_nce)(a, b, 2.5)
    assert_equal_to_reference(actual, reference(a, b, np.float32(2.5)))


@pytest.mark.parametrize("tile", [4, 64])
def test_gradients_equal_finite_differences(tile):
    def weighted(a, b):
        rows, columns = logsumexp_negatives(a, b, tile=tile)
        return jnp.sum(rows * jnp.cos(jnp.arange(10.0))) + jnp.sum(columns**2)

    with jax.enable_x64(True):
        a, b = (jnp.asarray(x, jnp.float64) for x in pairs(10))
        check_grads(jax.jit(weighted), (3 * a, b), order=1, modes=["rev"])


@pytest.mark.parametrize(("tile", "loss", "weights"), [(16, *SYMMETRIC), (64, *ONE_WAY)])
def test_a_sure_model_keeps_relative_precision(tile, loss, weights, tiles_of):
    # Here log-sum-exp minus positive would round to zero or below.
    tiles_of(tile)
    a, b = pairs(64, dim=64, noise=0.1)
    log_scale = np.float32(np.log(30.0))
    value, gradients = value_and_gradients(loss)(a, b, log_scale)
    expected, expected_gradients = reference(a, b, log_scale, weights)
    assert expected < 1e-6
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for x, y in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("tile", [4, 64])
def test_the_largest_scale_does_not_overflow(tile):
    # Anti-aligned pairs at scale 1,000: logits reach +-1,000, exp of which is no float32.
    a, _ = pairs(12)
    with jax.debug_nans(True):
        rows, columns = jax.jit(functools.partial(logsumexp_negatives, tile=tile))(1e3 * a, -a)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows, columns, rtol=1e-5)


def test_a_batch_of_one_has_nothing_to_learn():
    a, b = pairs(1)
    value, gradients = value_and_gradients(symmetric_info_nce)(a, b, 2.5)
    assert value == 0
    for gradient in gradients:
        assert not np.any(gradient)


def test_one_pair_on_each_device():
    a, b = pairs(4)
    with jax.set_mesh(mesh_of(data=4)):
        actual = value_and_gradients(symmetric_info_nce)(a, b, 2.5)
    assert_equal_to_reference(actual, reference(a, b, np.float32(2.5), (0.5, 0.5)))


@pytest.mark.parametrize("tile", [8, 64])
def test_nan_is_not_hidden(tile):
    a, b = pairs(40)
    a[17, 3] = np.nan
    rows, columns = jax.jit(functools.partial(logsumexp_negatives, tile=tile))(a, b)
    assert np.isnan(rows[17])
    assert np.isnan(np.delete(columns, 17)).all()


def test_a_batch_the_devices_cannot_share_is_refused():
    a, b = pairs(42)
    with (
        jax.set_mesh(mesh_of(data=2, fsdp=4)),
        pytest.raises(UserError, match="batch of 42 cannot be shared by the 8 devices"),
    ):
        jax.jit(info_nce)(a, b, 2.5)


def dense(a, b, log_scale):
    logits = jnp.exp(log_scale) * a @ b.T
    targets = jnp.diagonal(jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 0))
    return -jnp.mean(targets) / 2


def compiled_memory(loss, batch, sharding=None):
    embedding = jax.ShapeDtypeStruct((batch, 512), jnp.float32, sharding=sharding)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    call = value_and_gradients(loss).lower(embedding, embedding, scale).compile()
    return call.memory_analysis()


def test_eight_devices_need_a_quarter_of_the_dense_memory():
    mesh = mesh_of(data=8)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        ring = compiled_memory(symmetric_info_nce, 8192, sharding)
        plain = compiled_memory(dense, 8192, sharding)
    assert ring.temp_size_in_bytes <= plain.temp_size_in_bytes / 4


def test_a_batch_of_65536_fits_one_device():
    memory = compiled_memory(symmetric_info_nce, 65_536)
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert total < 1e9  # Four arrays of 134 MB are the embeddings and their gradients.


def test_a_batch_beyond_one_tile_equals_reference():
    a, b = pairs(contrastive.TILE + 100, dim=8)
    actual = value_and_gradients(symmetric_info_nce)(a, b, 2.5)
    assert_equal_to_reference(actual, reference(a, b, np.float32(2.5), (0.5, 0.5)))


@pytest.mark.parametrize(
    ("axes", "tile"), [({}, 64), ({}, 8), ({"data": 8}, 3), ({"data": 2, "fsdp": 2}, 64)]
)
@pytest.mark.parametrize(("loss", "weights"), [SYMMETRIC, ONE_WAY])
def test_rows_left_out_might_as_well_not_be_there(axes, tile, loss, weights, tiles_of):
    tiles_of(tile)
    a, b = pairs(40)
    keep = np.random.default_rng(3).random(40) < 0.6
    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    with jax.set_mesh(mesh_of(**axes) if axes else mesh_of(data=1)):
        value, (d_a, d_b, d_scale) = value_and_grad(a, b, 2.5, keep)
    actual = value, (d_a[keep], d_b[keep], d_scale)
    assert_equal_to_reference(actual, reference(a[keep], b[keep], np.float32(2.5), weights))
    assert not np.any(d_a[~keep])
    assert not np.any(d_b[~keep])


@pytest.mark.parametrize("tile", [4, 64])
def test_a_batch_of_which_nothing_is_kept(tile, tiles_of):
    tiles_of(tile)
    a, b = pairs(12)
    value, gradients = jax.jit(jax.value_and_grad(symmetric_info_nce, (0, 1)))(
        a, b, 2.5, np.zeros(12, bool)
    )
    assert value == 0
    assert not np.any(gradients)

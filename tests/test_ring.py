"""The ring buffer: look-up and writing, on any number of devices, against a slow reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from clipdef_jax import sharding
from clipdef_jax.errors import UserError
from clipdef_jax.losses import ring
from tests.test_step import mesh_of


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def whole_numbers(rng, *shape):
    """Vectors whose products are exact, and often equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def on_mesh(devices, buffer, batch):
    """Returns both split over the mesh entered, the buffer as `random_unit` would make it."""
    split = NamedSharding(mesh_of(devices), sharding.batch_spec())
    buffer = np.pad(buffer, ((0, -len(buffer) % ring.ROWS), (0, 0)))
    return jax.device_put(buffer, split), jax.device_put(batch, split)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [1, 37, 5000])
def test_nearest_equals_brute_force_and_ties_go_to_the_smaller_row(devices, size):
    rng = np.random.default_rng(size)
    pool, queries = whole_numbers(rng, size, 3), whole_numbers(rng, 16, 3)
    expected = np.argmax(queries @ pool.T, axis=1)
    with jax.set_mesh(mesh_of(devices)):
        rows, found = jax.jit(ring.nearest, static_argnames=("size", "tile"))(
            *on_mesh(devices, pool, queries), size=size, tile=100
        )
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(found, pool[expected])


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_beyond_the_ring_are_never_found(devices):
    pool = -np.ones((16, 2), np.float32)
    pool[10:] = 1
    queries = np.ones((8, 2), np.float32)
    with jax.set_mesh(mesh_of(devices)):
        rows, _ = ring.nearest(pool, queries, size=10)
    np.testing.assert_array_equal(rows, 0)


def test_a_query_that_is_not_a_number_finds_nothing():
    queries = jnp.array([[1.0, 0.0], [jnp.nan, 0.0]])
    rows, _ = ring.nearest(jnp.eye(2), queries, size=2)
    np.testing.assert_array_equal(rows, [0, ring.NOWHERE])


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(("size", "batch"), [(100, 32), (100, 8), (20, 32), (1, 8), (32, 32)])
def test_writing_goes_round_the_ring(devices, size, batch):
    rng = np.random.default_rng(0)
    expected, pointer = unit(rng, size, 4), 0
    with jax.set_mesh(mesh_of(devices)):
        pool, _ = on_mesh(devices, expected, unit(rng, batch, 4))
        for _ in range(5):
            vectors = unit(rng, batch, 4)
            rows = ring.next_rows(jnp.asarray(pointer), batch, size=size)
            pool = jax.jit(ring.write)(pool, rows, on_mesh(devices, pool, vectors)[1])
            for vector in vectors:
                expected[pointer] = vector
                pointer = (pointer + 1) % size
            np.testing.assert_array_equal(pool[:size], expected)
            assert not np.asarray(pool[size:]).any()


@pytest.mark.parametrize("devices", [1, 8])
def test_nowhere_is_not_written(devices):
    vectors = np.ones((8, 2), np.float32)
    with jax.set_mesh(mesh_of(devices)):
        none = ring.write(jnp.zeros((12, 2)), jnp.full(8, ring.NOWHERE), vectors)
        some = ring.write(jnp.zeros((12, 2)), jnp.full(8, ring.NOWHERE).at[3].set(11), vectors)
    assert not np.asarray(none).any()
    np.testing.assert_array_equal(np.asarray(some).any(axis=1), np.arange(12) == 11)


def test_a_new_ring_is_of_unit_vectors_and_the_same_on_any_mesh():
    alone = ring.random_unit(jax.random.key(0), 100, 8)
    assert alone.shape == (100, 8)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-6)
    assert len(np.unique(np.asarray(alone), axis=0)) == 100
    for devices in (1, 8):
        with jax.set_mesh(mesh_of(devices)):
            shared = ring.random_unit(jax.random.key(0), 100, 8)
        assert shared.shape == (ring.ROWS, 8)
        np.testing.assert_array_equal(shared[:100], alone)
        assert not np.asarray(shared[100:]).any()


def test_a_batch_that_the_devices_cannot_share():
    with (
        jax.set_mesh(mesh_of(8)),
        pytest.raises(UserError, match="batch of 12 cannot be shared by the 8 devices"),
    ):
        ring.nearest(jnp.zeros((16, 2)), jnp.zeros((12, 2)), size=16)

"""The state before the first step: from a seed or given parameters, placed by rules."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdef_jax import losses, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.train import optimizer, state
from tests.test_step import CLIP, mesh_of


def create(mesh, seed=0, **kwargs):
    tx = optimizer.make_optimizer(optimizer.warmup_cosine(0.1, 1, 10), weight_decay=0.1)
    return state.create(CLIP, losses.get("clip"), tx, seed, mesh, **kwargs)


def test_the_seed_decides_on_any_mesh():
    one, eight = create(mesh_of(1)), create(mesh_of(8))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [create(mesh_of(1), seed).params["image"]["projection"] for seed in (0, 1)]
    assert (kernels[0] != kernels[1]).any()


def test_given_parameters_are_started_from_with_a_fresh_optimiser():
    given = jax.device_get(create(mesh_of(1), seed=3).params)
    started = create(mesh_of(1), seed=0, params=given)
    for a, b in zip(jax.tree.leaves(started.params), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(started.step) == 0
    moments = [leaf for leaf in jax.tree.leaves(started.opt_state) if leaf.ndim]
    assert not any(leaf.any() for leaf in moments)


def test_moments_are_sharded_like_their_parameters():
    mesh = sharding.make_mesh(fsdp=8)
    made = create(mesh, rules=[("kernel$", P(None, "fsdp")), (".*", P())])
    found = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(made)
        if jax.tree_util.keystr(path).endswith("['up']['kernel']")
    ]
    assert found == [P(None, "fsdp")] * 6  # Two towers: the parameter and Adam's two moments.


def test_every_array_needs_a_rule():
    with pytest.raises(UserError, match="matches none of the sharding rules"):
        create(mesh_of(1), rules=[("kernel$", P())])


def test_a_loss_that_compares_keeps_a_copy_of_where_it_began():
    given = jax.device_get(create(mesh_of(1), seed=3).params)
    tx = optimizer.make_optimizer(optimizer.warmup_cosine(0.1, 1, 10), weight_decay=0.1)
    made = state.create(CLIP, losses.get("par"), tx, 0, mesh_of(1), params=given)
    for a, b, c in zip(*map(jax.tree.leaves, (made.reference, made.params, given)), strict=True):
        assert a is not b  # A step writes over the parameters it is given.
        np.testing.assert_array_equal(a, c)
    with pytest.raises(UserError, match="loss Par repairs a trained model"):
        state.create(CLIP, losses.get("par"), tx, 0, mesh_of(1))

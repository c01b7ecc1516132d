"""Meshes, sharded batches and parameter rules on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdef_jax import losses, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.train import optimizer, placement, state, step
from tests.test_step import CLIP, RESNET, batch_of, invert, mesh_of


def test_mesh_shapes():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(UserError, match=r"fsdp=3 does not divide the 8 devices.*\[1, 2, 4, 8\]"):
        sharding.make_mesh(fsdp=3)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_batch_rows_go_to_the_devices_in_order(fsdp):
    rows = np.arange(16 * 3).reshape(16, 3)
    batch = sharding.shard_batch(sharding.make_mesh(fsdp), {"text": rows})
    np.testing.assert_array_equal(batch["text"], rows)
    shards = sorted(batch["text"].addressable_shards, key=lambda shard: shard.device.id)
    for device, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.data, rows[2 * device : 2 * device + 2])


def test_batch_that_does_not_divide():
    with pytest.raises(UserError, match=r"batch of 12 .*not divisible by 8 devices"):
        sharding.shard_batch(sharding.make_mesh(), {"image": np.zeros((12, 2))})


def test_first_rule_wins_and_every_array_needs_one():
    mesh = sharding.make_mesh(fsdp=4)
    tree = {"up": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(8)}, "scale": jnp.zeros(())}
    rules = [("kernel$", P("fsdp")), ("up/", P()), ("scale", P())]
    placed = sharding.by_rules(mesh, rules, tree)
    assert placed["up"]["kernel"].spec == P("fsdp")
    assert placed["up"]["bias"].spec == P()
    array = jax.device_put(tree["up"]["kernel"], placed["up"]["kernel"])
    assert array.addressable_shards[0].data.shape == (2, 4)
    with pytest.raises(UserError, match=r"scale \(\) matches none"):
        sharding.by_rules(mesh, rules[:2], tree)
    with pytest.raises(UserError, match=r"up/kernel \(6, 4\): rule 'kernel\$'.*does not fit"):
        sharding.by_rules(mesh, rules, {"up": {"kernel": jnp.zeros((6, 4))}})


def test_place_puts_every_shard_where_its_rule_says():
    mesh = sharding.make_mesh(fsdp=4)
    tree = {"kernel": np.arange(8.0).reshape(2, 4), "bias": np.arange(3.0)}
    placed = sharding.place(mesh, [("kernel$", P(None, "fsdp")), ("bias$", P())], tree)
    for name, array in tree.items():
        np.testing.assert_array_equal(placed[name], array)
    assert placed["kernel"].sharding.spec == P(None, "fsdp")
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 1)


def after_one_step(mesh, fsdp, clip, loss, batch):
    # Adam divides a gradient by its own size, and so makes a step of the rounding of one that is
    # zero, as that of the keys' biases is, or nearly so: of a word's gradient, a sum in which terms
    # of 0.6 cancel, 3e-6 are rounding on some processors. By this eps a tenth of it gets through.
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(1e-3), weight_decay=0.1, eps=1e-2)
    with jax.set_mesh(mesh):
        before = state.create(clip, loss, tx, 0, mesh, rules=placement.rules_of(fsdp))
        shardings = jax.tree.map(lambda x: x.sharding, before)
        one_step = step.make_step(clip, loss, tx, invert, 2, shardings)
        after, metrics = one_step(before, sharding.shard_batch(mesh, batch))
    for array, where in zip(jax.tree.leaves(after), jax.tree.leaves(shardings), strict=True):
        assert array.sharding.is_equivalent_to(where, array.ndim)
    return after, metrics


@pytest.mark.parametrize("clip", [CLIP, RESNET], ids=["vit", "resnet"])
def test_a_step_gives_the_same_parameters_on_every_mesh(clip):
    loss, batch = losses.get("cleanclip"), batch_of(16, clip.config.image_size)
    one, alone = after_one_step(mesh_of(1), 1, clip, loss, batch)
    for fsdp in (1, 4):
        eight, metrics = after_one_step(sharding.make_mesh(fsdp), fsdp, clip, loss, batch)
        np.testing.assert_allclose(metrics["loss"], alone["loss"], rtol=1e-6)
        for (path, got), want in zip(
            jax.tree_util.tree_leaves_with_path(eight.params),
            jax.tree.leaves(one.params),
            strict=True,
        ):
            np.testing.assert_allclose(
                got, want, rtol=1e-6, atol=1e-6, err_msg=jax.tree_util.keystr(path)
            )
    if clip is RESNET:
        fresh = clip.init(jax.random.key(0))["batch_stats"]
        moved = jax.tree.map(lambda a, b: (a != b).any(), fresh, one.params["batch_stats"])
        assert all(jax.tree.leaves(moved))


def test_parameters_are_gathered_for_use_and_activations_stay_where_they_are():
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(1e-3), weight_decay=0.1)
    mesh, loss = sharding.make_mesh(fsdp=4), losses.get("clip")
    with jax.set_mesh(mesh):
        made = state.create(CLIP, loss, tx, 0, mesh, rules=placement.rules_of(4))
        one_step = step.make_step(CLIP, loss, tx, invert, 2)
        text = one_step.lower(made, sharding.shard_batch(mesh, batch_of(16))).compile().as_text()
    assert " all-gather(" in text
    assert " all-to-all(" not in text

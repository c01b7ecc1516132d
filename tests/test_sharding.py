"""Meshes, sharded batches and parameter rules on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdef_jax import sharding
from clipdef_jax.errors import UserError


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

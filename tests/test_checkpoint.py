"""Checkpoints: equal back, on other meshes, and from the one before if the newest is damaged."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipdef_jax import losses, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.train import checkpoint, optimizer, state
from tests.test_step import CLIP, mesh_of

DATA = {"seed": 0, "batch": 8, "records": 100}


def make_state(mesh, seed=0, rules=state.REPLICATED):
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(0.1), weight_decay=0.1)
    return state.create(CLIP, losses.get("clip"), tx, seed, mesh, rules=rules)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def save_steps(folder, steps):
    writer = checkpoint.Checkpoints(folder, DATA)
    states = {}
    for number in steps:
        made = make_state(mesh_of(1), seed=number)
        states[number] = made.replace(step=jnp.asarray(number, jnp.int32))
        writer.save(states[number])
    writer.close()
    return states


def test_restores_the_newest_and_keeps_two(tmp_path):
    states = save_steps(tmp_path / "c", [1, 2, 3])
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "3"]
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    restored = reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    assert_same(restored, states[3])
    reader.save(restored)  # The same step again is no error.
    reader.close()


def test_nothing_to_restore(tmp_path):
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    assert reader.restore(checkpoint.abstract_of(make_state(mesh_of(1)))) is None
    reader.close()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_written_on_eight_devices_resumes_on_any(tmp_path, devices):
    rules = [("kernel$", P(None, "fsdp")), (".*", P())]
    mesh = sharding.make_mesh(fsdp=8)
    written = make_state(mesh, seed=5, rules=rules)
    writer = checkpoint.Checkpoints(tmp_path / "c", DATA)
    writer.save(written)
    writer.close()
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    target = checkpoint.abstract_of(make_state(mesh_of(devices)))
    restored = reader.restore(target)
    reader.close()
    assert_same(jax.device_get(restored), jax.device_get(written))
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize("damage", ["truncate", "delete_half", "empty"])
def test_damaged_newest_falls_back_with_a_warning(tmp_path, caplog, damage):
    states = save_steps(tmp_path / "c", [1, 2])
    newest = tmp_path / "c" / "2"
    files = sorted(path for path in (newest / "state").rglob("*") if path.is_file())
    if damage == "truncate":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "delete_half":
        for path in files[::2]:
            path.unlink()
    else:
        shutil.rmtree(newest / "state")
        (newest / "state").mkdir()
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    with caplog.at_level(logging.WARNING):
        restored = reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    reader.close()
    assert_same(restored, states[1])
    assert f"checkpoint {newest} cannot be read" in caplog.text


def test_all_damaged_is_an_error(tmp_path):
    save_steps(tmp_path / "c", [1])
    shutil.rmtree(tmp_path / "c" / "1" / "state")
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read .*step 1"):
        reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    reader.close()


def test_checkpoint_of_other_data(tmp_path):
    save_steps(tmp_path / "c", [1])
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA | {"records": 99})
    with pytest.raises(UserError, match="records was 100, is 99"):
        reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    reader.close()

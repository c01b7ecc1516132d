"""Checkpoints: equal back, on other meshes, and from the one before if the newest is damaged."""

import logging
import re
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

# Where orbax meets damage it leaves coroutines behind that nobody has awaited.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
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


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.isdigit())


def test_restores_the_newest_and_keeps_two(tmp_path):
    states = save_steps(tmp_path / "c", [1, 2, 3])
    assert steps_in(tmp_path / "c") == ["2", "3"]
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


def truncate(path):
    for file in [path] if path.is_file() else list(path.rglob("*")):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(path):
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(b"")


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("damage", "what", "reason"),
    [
        (truncate, ".", "JSONDecodeError"),
        (delete, "state", "KeyError: .*'state'"),
        (delete, "data", "KeyError: .*'data'"),
        (empty, "state", "FileNotFoundError: .*_METADATA"),
        (empty, ".", "KeyError"),
        (delete, "state/_METADATA", "FileNotFoundError: .*_METADATA"),
        (truncate, "state/_METADATA", "JSONDecodeError"),
        (empty, "state/manifest.ocdbt", "DATA_LOSS"),
        (delete, "state/d/*", "NOT_FOUND"),
        (delete, "state/ocdbt.process_0/d/*", "DATA_LOSS|NOT_FOUND"),
        (truncate, "state/ocdbt.process_0/d/*", "OUT_OF_RANGE|DATA_LOSS"),
        (empty, "state/ocdbt.process_0/d/*", "OUT_OF_RANGE|DATA_LOSS"),
    ],
)
def test_damaged_newest_falls_back_with_a_warning(tmp_path, caplog, damage, what, reason):
    states = save_steps(tmp_path / "c", [1, 2])
    newest = tmp_path / "c" / "2"
    (path,) = newest.glob(what) if "*" in what else [newest / what]
    damage(path)
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    with caplog.at_level(logging.WARNING):
        restored = reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    assert_same(restored, states[1])
    (warning,) = [record for record in caplog.records if record.name == checkpoint.__name__]
    assert warning.levelno == logging.WARNING
    assert re.fullmatch(
        rf"checkpoint {re.escape(str(newest))} cannot be read \(\w+: .{{1,200}}\); "
        "trying the one before",
        warning.getMessage(),
    )
    assert re.search(reason, warning.getMessage())
    # The run comes by the same step again, and this time leaves a sound checkpoint of it.
    reader.save(states[2])
    reader.close()
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    assert_same(reader.restore(checkpoint.abstract_of(make_state(mesh_of(1)))), states[2])
    reader.close()


def test_a_damaged_checkpoint_is_none_of_the_two_kept(tmp_path):
    save_steps(tmp_path / "c", [1, 3])
    truncate(tmp_path / "c" / "3")
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    restored = reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    reader.save(restored.replace(step=jnp.asarray(2, jnp.int32)))
    reader.close()
    assert steps_in(tmp_path / "c") == ["1", "2"]


@pytest.mark.parametrize("damage", [truncate, empty, delete])
def test_an_older_one_half_deleted_does_no_harm(tmp_path, damage):
    """What a kill leaves of a checkpoint that was being removed because newer ones are there."""
    states = save_steps(tmp_path / "c", [1, 2])
    damage(tmp_path / "c" / "1" / "state")
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    assert_same(reader.restore(checkpoint.abstract_of(make_state(mesh_of(1)))), states[2])
    for step in (3, 4):
        reader.save(states[2].replace(step=jnp.asarray(step, jnp.int32)))
    reader.close()
    assert steps_in(tmp_path / "c") == ["3", "4"]


def test_what_a_killed_write_left_is_removed(tmp_path):
    states = save_steps(tmp_path / "c", [1, 2])
    (tmp_path / "c" / "2").rename(tmp_path / "c" / "2.orbax-checkpoint-tmp")
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    assert_same(reader.restore(checkpoint.abstract_of(make_state(mesh_of(1)))), states[1])
    reader.close()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]


def test_all_damaged_is_an_error(tmp_path):
    save_steps(tmp_path / "c", [1, 2])
    delete(tmp_path / "c" / "1" / "state")
    truncate(tmp_path / "c" / "2")
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA)
    with pytest.raises(
        UserError,
        match=r"^no checkpoint in .* can be read \(step 2: .*; step 1: .*\); delete the folder .*$",
    ):
        reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    reader.close()


def test_checkpoint_of_other_data(tmp_path):
    save_steps(tmp_path / "c", [1])
    reader = checkpoint.Checkpoints(tmp_path / "c", DATA | {"records": 99})
    with pytest.raises(UserError, match="records was 100, is 99"):
        reader.restore(checkpoint.abstract_of(make_state(mesh_of(1))))
    reader.close()

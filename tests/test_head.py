"""The linear head: its file, its rows, and how it is trained beside a CLIP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from clipdef_jax import losses, models, sharding
from clipdef_jax.errors import UserError
from clipdef_jax.models import head
from clipdef_jax.train import optimizer, state, step
from tests.test_step import CLIP, batch_of, invert, mesh_of

CLASSES = ("fox", "œuf", "ship")
MADE = {"kernel": jnp.arange(24, dtype=jnp.float32).reshape(3, 8)}


def test_what_is_saved_is_loaded_and_the_model_still_is(tmp_path):
    params = CLIP.init(jax.random.key(0))
    models.save(tmp_path / "model", CLIP, params)
    assert head.load(tmp_path / "model") is None
    head.save(tmp_path / "model", MADE, CLASSES)
    loaded, classes = head.load(tmp_path / "model")
    assert classes == CLASSES
    np.testing.assert_array_equal(loaded["kernel"], MADE["kernel"])
    _, again = models.load(tmp_path / "model")
    np.testing.assert_array_equal(again["log_scale"], params["log_scale"])
    assert not [path.name for path in (tmp_path / "model").iterdir() if "unfinished" in path.name]


@pytest.mark.parametrize("classes", [None, ["fox"]])
def test_a_file_that_is_no_head_is_named(tmp_path, classes):
    if classes is None:
        (tmp_path / "head.safetensors").write_bytes(b"nothing")
    else:
        kernel = {"kernel": np.zeros((3, 8), np.float32)}
        metadata = {"classes": '["fox"]'}
        safetensors.numpy.save_file(kernel, tmp_path / "head.safetensors", metadata)
    with pytest.raises(UserError, match=r"head\.safetensors.*delete it"):
        head.load(tmp_path)


def test_rows_go_by_name():
    np.testing.assert_array_equal(
        head.rows(MADE, CLASSES, ("ship", "fox")), np.asarray(MADE["kernel"])[[2, 0]]
    )
    with pytest.raises(UserError, match="a class 'egg' that the head was not trained on"):
        head.rows(MADE, CLASSES, ("ship", "egg"))


def test_the_head_and_the_image_tower_learn_and_the_text_tower_stays():
    mesh, loss = mesh_of(1), losses.get("supervised")
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(1e-2), weight_decay=0.1)
    batch = {"image": batch_of(8)["image"], "label": np.arange(8, dtype=np.int32) % 3}
    with jax.set_mesh(mesh):
        # The head of another run stays behind.
        params = CLIP.init(jax.random.key(1)) | {"head": MADE}
        now = state.create(CLIP, loss, tx, 0, mesh, params=params, classes=3)
        np.testing.assert_array_equal(now.params["head"]["kernel"], np.zeros((3, 8)))
        train_step = step.make_step(CLIP, loss, tx, invert, 2)
        values = []
        for _ in range(12):
            now, metrics = train_step(now, sharding.shard_batch(mesh, batch))
            values.append(float(metrics["loss"]))
    assert values[0] == pytest.approx(np.log(3), rel=1e-6)
    assert values[-1] < 0.5 * values[0]
    for tower, moved in (("image", True), ("text", False)):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), now.params[tower], params[tower])
        assert all(jax.tree.leaves(same)) != moved


def test_other_losses_train_no_head():
    tx = optimizer.make_optimizer(lambda _: jnp.asarray(1e-2), weight_decay=0.1)
    params = CLIP.init(jax.random.key(1)) | {"head": MADE}
    made = state.create(CLIP, losses.get("clip"), tx, 0, mesh_of(1), params=params, classes=3)
    assert "head" not in made.params

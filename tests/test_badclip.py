"""BadCLIP: its loss by the book, the search it drives, and the job around it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax import attacks, interrupts, models, optimise_trigger
from clipdef_jax.attacks import badclip
from clipdef_jax.attacks.triggers import Box
from clipdef_jax.data import tokenizer
from clipdef_jax.errors import UserError
from configs import badclip as job
from tests.running import run_on
from tests.test_step import TINY, mesh_of

SIDE = TINY["image_size"]
BOX = Box(4, 4, 6, 6)
QUIET = {"on_step": lambda done, figures: None}


def unit_rows(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def embed(clip, params, images):
    features = clip.encode_image(params, clip.preprocess(images))
    return features / jnp.linalg.norm(features, axis=1, keepdims=True)


def slow_loss(triggered, caption, positive, clean, scale, weight, margin):
    """Row by row, in float64."""
    triggered, caption, positive, clean = (
        array.astype(np.float64) for array in (triggered, caption, positive, clean)
    )
    logits = scale * triggered @ caption.T
    batch = len(logits)
    contrast = 0.0
    for matrix in (logits, logits.T):
        for i in range(batch):
            contrast -= matrix[i, i] - np.log(np.exp(matrix[i]).sum())
    triplet = 0.0
    for i in range(batch):
        near = np.sqrt(sum((triggered[i] - positive[i] + 1e-6) ** 2))
        far = np.sqrt(sum((triggered[i] - clean[i] + 1e-6) ** 2))
        triplet += max(0.0, near - far + margin)
    return contrast / (2 * batch) + weight * triplet / batch


@pytest.mark.parametrize("margin", [1.0, 0.1])
def test_the_loss_equals_a_slow_reference(margin):
    rng = np.random.default_rng(0)
    views = [unit_rows(rng, 16, 8) for _ in range(4)]
    with jax.set_mesh(mesh_of(1)):
        loss = jax.jit(
            functools.partial(
                badclip.badclip_loss, log_scale=np.log(20.0), triplet_weight=500.0, margin=margin
            )
        )
        value, terms = loss(*views)
    np.testing.assert_allclose(value, slow_loss(*views, 20.0, 500.0, margin), rtol=1e-5)
    np.testing.assert_allclose(value, terms["info_nce"] + 500 * terms["triplet"], rtol=1e-6)


def test_a_patch_that_changes_nothing_still_has_a_gradient():
    rows = jnp.asarray(unit_rows(np.random.default_rng(0), 8, 8))

    def value(triggered):
        return badclip.badclip_loss(
            triggered, rows, rows, rows, log_scale=0.0, triplet_weight=1.0, margin=1.0
        )[0]

    with jax.set_mesh(mesh_of(1)):
        assert np.isfinite(jax.jit(jax.grad(value))(rows)).all()


@pytest.fixture(scope="module")
def victim():
    clip = models.get("ViT-Ti/4", **TINY)
    params = jax.jit(clip.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, SIDE, SIDE, 3), dtype=np.uint8)
    dim = clip.config.embed_dim
    goal = unit_rows(rng, 1, dim)
    near = goal + 0.1 * unit_rows(rng, 48, dim)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    clean = np.asarray(embed(clip, params, images))
    return clip, params, badclip.Material(images, clean, near, near[:20])


def search(victim, folder, *, devices=1, epochs=6, on_step=QUIET["on_step"], **fields):
    clip, params, material = victim
    mesh = mesh_of(devices)
    with jax.set_mesh(mesh):
        return badclip.optimise(
            clip,
            params,
            material,
            BOX,
            badclip.Search(epochs=epochs, batch=16, lr=0.02, **fields),
            mesh=mesh,
            state_file=folder / "search.npz",
            on_step=on_step,
        )


def closeness(victim, patch):
    """Mean cosine between patched images and the first positive."""
    clip, params, material = victim
    images = material.images.astype(np.float32)
    images[:, 4:10, 4:10] = 255 * patch
    return np.asarray(embed(clip, params, images)) @ material.positives[0]


def test_the_search_brings_patched_images_near_the_target(victim, tmp_path):
    steps = []
    patch = search(victim, tmp_path, epochs=20, on_step=lambda done, f: steps.append((done, f)))
    assert patch.shape == (6, 6, 3)
    assert patch.min() >= 0
    assert patch.max() <= 1
    start = badclip.start_patch(6, 0)
    assert closeness(victim, patch).mean() > closeness(victim, start).mean() + 0.05
    assert [done for done, _ in steps] == list(range(1, 61))
    assert steps[-1][1]["loss"] < steps[0][1]["loss"]


def test_the_start_is_normal_noise_within_the_pixel_range():
    patch = badclip.start_patch(64, 3)
    assert patch.dtype == np.float32
    assert ((patch >= 0) & (patch <= 1)).all()
    np.testing.assert_allclose([patch.mean(), np.median(patch)], 0.5, atol=0.01)
    # 2.3% of N(0.5, 0.25) lie beyond each end.
    np.testing.assert_allclose([(patch == 0).mean(), (patch == 1).mean()], 0.0228, atol=0.006)


def test_eight_devices_find_what_one_finds(victim, tmp_path):
    (tmp_path / "eight").mkdir()
    one = search(victim, tmp_path, epochs=2)
    eight = search(victim, tmp_path / "eight", epochs=2, devices=8)
    np.testing.assert_allclose(one, eight, atol=1e-3)


def test_a_stopped_search_goes_on_with_the_epoch_it_was_in(victim, tmp_path, monkeypatch):
    expected = search(victim, tmp_path, epochs=4)
    folder = tmp_path / "stopped"
    folder.mkdir()
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 8:  # In the third epoch of three steps.
            raise interrupts.Interrupted(15)

    with monkeypatch.context() as patched:
        patched.setattr(interrupts, "check", stop)
        with pytest.raises(interrupts.Interrupted):
            search(victim, folder, epochs=4)
    done = []
    patch = search(victim, folder, epochs=4, on_step=lambda number, f: done.append(number))
    assert done[0] == 7
    np.testing.assert_array_equal(patch, expected)
    np.testing.assert_array_equal(search(victim, folder, epochs=4), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "search.epochs is 0"),
        ({"batch": 0}, "search.batch is 0"),
        ({"lr": -1.0}, "search.lr is -1.0"),
        ({"margin": float("nan")}, "search.margin is nan"),
        ({"triplet_weight": float("inf")}, "search.triplet_weight is inf"),
    ],
)
def test_bad_settings_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        badclip.Search(**fields)


def test_fewer_images_than_a_batch_are_refused(victim, tmp_path):
    clip, params, material = victim
    few = (clip, params, material._replace(images=material.images[:10]))
    with pytest.raises(UserError, match=r"batch is 16, and there are only 10 images"):
        search(few, tmp_path)


def test_the_job_leaves_a_patch_that_a_trigger_pastes(tmp_path):
    captions = ["a banana", "a frog", "a baby chick", "a beetle"] * 20
    words = tokenizer.train(captions, 560, 16)
    shape = {**TINY, "context_length": 16, "vocab_size": words.vocab_size}
    clip = models.get("ViT-Ti/4", **shape, eos_token_id=words.eos_token_id)
    models.save(tmp_path / "model", clip, jax.device_get(jax.jit(clip.init)(jax.random.key(0))))
    words.save(tmp_path / "model")

    config = job.get_config("smoke")
    config.init = str(tmp_path / "model")
    config.data.train = "emoji:train,size=80,concepts=4"
    config.data.test = "emoji:test,size=16,concepts=4"
    config.search.batch, config.search.size = 16, 6
    workdir = tmp_path / "run"
    summary = run_on(1, optimise_trigger.run, config, workdir)
    assert [row["model"] for row in summary["results"]] == ["random patch", "optimised patch"]
    assert summary == json.loads((workdir / "summary.json").read_text())
    patch = np.load(workdir / "trigger.npy")
    assert patch.shape == (6, 6, 3)
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    pasted = [
        attacks.get_trigger("badclip", path=str(workdir / name), size=6)(grey, None)
        for name in ("trigger.npy", "trigger.png")
    ]
    np.testing.assert_array_equal(*pasted)
    start = (SIDE - 6) // 2
    shown = pasted[0][start : start + 6, start : start + 6]
    np.testing.assert_array_equal(shown, np.round(patch * 255))

    config.init = ""
    with pytest.raises(UserError, match=r"give it as --config\.init=PATH"):
        optimise_trigger.run(config, workdir, command="test")

"""The views of a batch against each encoded by itself, on one device and on eight."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax import sharding
from clipdef_jax.errors import UserError
from clipdef_jax.train import views
from clipdef_jax.types import Subtext
from tests.test_step import CLIP, batch_of, invert, mesh_of

ROWS = 16
NAMES = ("image", "text_pos", "text_neg", "has_subtext", "text_ref", "logits", "label")


def loss_of(names, **fields):
    return types.SimpleNamespace(views=names, **fields)


encode_image, encode_text = jax.jit(CLIP.encode_image), jax.jit(CLIP.encode_text)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return batch_of(ROWS) | {
        "text_pos": rng.integers(0, 62, (ROWS, 8), dtype=np.int32),
        "text_neg": rng.integers(0, 62, (ROWS, 3, 8), dtype=np.int32),
        "has_subtext": np.arange(ROWS) % 5 == 0,  # Four, the most that a quarter allows.
        "label": np.arange(ROWS, dtype=np.int32),
    }


@pytest.fixture(scope="module")
def params():
    first, second = (jax.jit(CLIP.init)(jax.random.key(seed)) for seed in (0, 1))
    kernel = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
    return first | {"head": {"kernel": jnp.asarray(kernel)}}, second


def encoded(devices, batch, params, names=NAMES):
    loss, mesh = loss_of(names, subtext=Subtext(fraction=0.25, negatives=3)), mesh_of(devices)
    with jax.set_mesh(mesh):

        @jax.jit
        def encode(params, batch):
            made, _ = views.encode(
                CLIP, loss, *params, batch, augment=invert, rng=jax.random.key(0)
            )
            return made

        arrays = {name: batch[name] for name in views.arrays_of(names)}
        return jax.device_get(encode(params, sharding.shard_batch(mesh, arrays)))


def test_each_view_is_what_its_tower_makes_of_it(batch, params):
    made = encoded(1, batch, params)
    own, reference = params
    assert made.keys() == set(NAMES)
    image = np.asarray(encode_image(own, CLIP.preprocess(jnp.asarray(batch["image"]))))
    np.testing.assert_allclose(made["image"], unit(image), atol=1e-6)
    np.testing.assert_allclose(
        made["logits"], image @ np.asarray(own["head"]["kernel"]).T, rtol=2e-5, atol=1e-5
    )
    text_ref = np.asarray(encode_text(reference, batch["text"]))
    np.testing.assert_allclose(made["text_ref"], unit(text_ref), atol=1e-6)
    has = batch["has_subtext"]
    positive = np.asarray(encode_text(own, batch["text_pos"]))
    np.testing.assert_allclose(made["text_pos"][has], unit(positive)[has], atol=1e-6)
    negative = np.asarray(encode_text(own, batch["text_neg"].reshape(-1, 8)))
    negative = unit(negative).reshape(ROWS, 3, -1)
    np.testing.assert_allclose(made["text_neg"][has], negative[has], atol=1e-6)
    assert not made["text_pos"][~has].any()
    np.testing.assert_array_equal(made["has_subtext"], has)
    np.testing.assert_array_equal(made["label"], batch["label"])


def test_one_device_equals_eight(batch, params):
    one, eight = (encoded(devices, batch, params) for devices in (1, 8))
    for name in NAMES:
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=1e-5)


def test_views_ask_for_their_arrays_and_train_their_towers():
    assert views.arrays_of(("image_aug", "image_ref", "text_neg")) == ["image", "text_neg"]
    assert views.towers_of(("logits", "label", "text_ref")) == {"image"}
    with pytest.raises(UserError, match="wants a view 'sound'; there are image"):
        views.arrays_of(("sound",))

"""The model as a whole: shapes by name, initialisation, dtype policy, sharding."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from clipdef_jax import models
from clipdef_jax.errors import UserError

SMALL = {
    "image_size": 16,
    "image_width": 32,
    "image_layers": 1,
    "embed_dim": 16,
    "text_width": 32,
    "text_layers": 1,
    "context_length": 8,
    "vocab_size": 50,
}


def small(**fields) -> models.CLIP:
    policy = {name: fields.pop(name) for name in ("dtype", "remat") if name in fields}
    return models.get("ViT-Ti/4", **policy, **(SMALL | fields))


def random_params(clip, seed=0):
    """Parameters none of which is at a special value, without the compile time of `init`."""
    generator = np.random.default_rng(seed)
    shapes = jax.eval_shape(clip.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * generator.normal(size=leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def params():
    return random_params(small())


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    pixels = generator.normal(size=(8, 16, 16, 3)).astype(np.float32)
    tokens = generator.integers(1, 49, (8, 8)).astype(np.int32)
    tokens[:, 5] = 49
    return pixels, tokens


@functools.partial(jax.jit, static_argnums=0)
def encode(clip, params, batch):
    return clip.encode_image(params, batch[0]), clip.encode_text(params, batch[1])


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(clip, params, batch):
    def loss(params):
        image, text = encode(clip, params, batch)
        return (image * text).mean()

    return jax.value_and_grad(loss)(params)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


# Millions of parameters that OpenCLIP's model profile reports for the original models.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("RN50", 102.01),
        ("RN101", 119.69),
        ("RN50x4", 178.3),
        ("ViT-B/32", 151.28),
        ("ViT-B/16", 149.62),
        ("ViT-L/14", 427.62),
        ("ViT-Ti/4", 1.70),
        ("ViT-Ti/8", 0.55),
    ],
)
def test_named_models_have_the_published_size(name, millions):
    shapes = jax.eval_shape(models.get(name).init, jax.random.key(0))
    weights, _ = models.split_statistics(shapes)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("name", models.NAMED)
def test_config_survives_json(name):
    config = models.NAMED[name]
    text = json.dumps(config.to_dict())
    assert models.CLIPConfig.from_dict(json.loads(text)) == config


def test_unknown_name_lists_what_exists():
    with pytest.raises(
        UserError, match=r"unknown model 'ViT-B32'; did you mean 'ViT-B/32'\? .*RN50"
    ):
        models.get("ViT-B32")


def test_unknown_field_lists_what_exists():
    with pytest.raises(UserError, match=r"'image_szie'; did you mean 'image_size'\? .*vocab_size"):
        models.get("ViT-Ti/4", image_szie=32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, "image_size is 30, expected a multiple of 4"),
        ({"image_heads": 5}, "image_heads is 5, expected a divisor of 128"),
        ({"text_heads": 3}, "text_heads is 3, expected a divisor of text_width 128"),
        ({"text_layers": 0}, "text_layers is 0, expected a positive integer"),
        ({"image_layers": (1, 1, 1, 1)}, "image_layers is .* expected a positive integer"),
        ({"image_tower": "resnet"}, "image_layers is 4, expected four positive integers"),
        ({"activation": "relu"}, "activation is 'relu', expected 'quick_gelu' or 'gelu'"),
        ({"eos_token_id": 2048}, "eos_token_id is 2048, expected an id below vocab_size 2048"),
        ({"pixel_mean": None}, "pixel_std is .* expected"),
        ({"image_mlp_width": -1}, "image_mlp_width is -1"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        models.get("ViT-Ti/4", **fields)


def test_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="'float16', expected 'float32' or 'bfloat16'"):
        models.get("ViT-Ti/4", dtype="float16")


WIDE = small(image_width=128, text_width=128, vocab_size=500)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(WIDE.init)(jax.random.key(0))


def test_init_follows_the_original_scheme(fresh):
    params = flat(fresh)
    stds = {
        "text/token_embedding": 0.02,
        "text/positional_embedding": 0.01,
        "text/projection": 128**-0.5,
        "text/blocks/0/attention/qkv/kernel": 128**-0.5,
        "text/blocks/0/attention/out/kernel": (2 * 128) ** -0.5,
        "text/blocks/0/mlp/up/kernel": (2 * 128) ** -0.5,
        "text/blocks/0/mlp/down/kernel": (2 * 128) ** -0.5,
        "image/blocks/0/attention/out/kernel": (2 * 128) ** -0.5,
        "image/projection": 128**-0.5,
        "image/patch_embedding": (3 * 4 * 4 * 3) ** -0.5,
    }
    for name, std in stds.items():
        np.testing.assert_allclose(np.std(params[name]), std, rtol=0.1, err_msg=name)
    for name, value in params.items():
        if name.endswith("bias"):
            assert not np.any(value), name
        if name.endswith("scale") and "ln" in name:
            assert np.all(value == 1), name
    assert params["log_scale"] == np.float32(np.log(1 / 0.07))
    assert all(value.dtype == jnp.float32 for value in params.values())


def test_init_under_jit_onto_a_mesh_gives_the_same_numbers(fresh):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(leaf):
        divides = leaf.ndim and leaf.shape[0] % 8 == 0
        return NamedSharding(mesh, PartitionSpec("data") if divides else PartitionSpec())

    sharded = jax.jit(WIDE.init, out_shardings=jax.tree.map(spread, fresh))(jax.random.key(0))
    assert not sharded["text"]["projection"].is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), sharded, fresh)


def test_preprocess_scales_and_normalises(batch):
    clip = small()
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    expected = (images / 255 - clip.config.pixel_mean) / clip.config.pixel_std
    np.testing.assert_allclose(jax.jit(clip.preprocess)(images), expected, atol=1e-5)


def test_preprocess_without_mean_only_scales():
    images = np.full((1, 16, 16, 3), 255, np.uint8)
    pixels = small(pixel_mean=None, pixel_std=None).preprocess(images)
    np.testing.assert_array_equal(pixels, np.ones((1, 16, 16, 3), np.float32))


def test_pixels_of_another_size_are_refused(params):
    with pytest.raises(UserError, match=r"\(1, 32, 32, 3\), expected \(B, 16, 16, 3\)"):
        small().encode_image(params, jnp.zeros((1, 32, 32, 3)))


def test_bfloat16_computes_coarsely_and_keeps_float32_at_the_ends(params, batch):
    coarse_clip = small(dtype="bfloat16")
    gradient = jax.eval_shape(lambda: value_and_grad(coarse_clip, params, batch))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    coarse, exact = (encode(clip, params, batch) for clip in (coarse_clip, small()))
    for ours, theirs in zip(coarse, exact, strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert 1e-5 < error < 5e-2


def test_remat_changes_neither_value_nor_gradient(params, batch):
    plain, remat = (value_and_grad(small(remat=remat), params, batch) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, remat)


def test_remat_keeps_less(params):
    clip = models.get("ViT-Ti/4")
    params = jax.eval_shape(clip.init, jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    kept = []
    for remat in (False, True):
        encode_image = models.get("ViT-Ti/4", remat=remat).encode_image
        _, backward = jax.eval_shape(
            lambda p, x, encode_image=encode_image: jax.vjp(encode_image, p, x), params, pixels
        )
        kept.append(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backward)))
    assert kept[1] < 0.3 * kept[0]


def test_a_sharded_batch_gives_the_same_features(params, batch):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    ours, theirs = encode(small(), params, batch), encode(small(), params, sharded)
    for one, eight in zip(ours, theirs, strict=True):
        assert len(eight.sharding.device_set) == 8
        np.testing.assert_allclose(one, eight, atol=1e-5)


def test_a_vit_trains_without_statistics(params, batch):
    features, statistics = jax.jit(small().encode_image_train)(params, batch[0])
    assert statistics == {}
    np.testing.assert_allclose(features, encode(small(), params, batch)[0], atol=1e-5)
    weights, nothing = models.split_statistics(params)
    assert nothing == {}
    assert weights == params


def test_the_model_is_a_value():
    assert small() == small()
    assert hash(small()) == hash(dataclasses.replace(small(remat=True), remat=False))

"""Tensors by the names and in the layouts of other libraries."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from clipdef_jax import models
from clipdef_jax.models import names

VIT = models.get(
    "ViT-Ti/4", image_size=8, image_width=16, image_layers=1, embed_dim=6, text_width=8,
    text_layers=2, text_heads=2, context_length=7, vocab_size=20, pixel_mean=None, pixel_std=None,
)  # fmt: skip
RESNET = models.get(
    "RN-Ti", image_width=4, image_heads=4, embed_dim=6, text_width=8, text_layers=1, text_heads=2,
    context_length=7, vocab_size=20, eos_token_id=19,
)  # fmt: skip


def random_params(clip):
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(clip.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.asarray(generator.normal(size=leaf.shape), np.float32), shapes
    )


def assert_same_params(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def openai_file(tmp_path_factory):
    """A ViT under OpenAI's names, with heads 64 wide as all of theirs."""
    clip = models.get(
        "ViT-Ti/4", image_size=8, image_width=64, image_layers=1, image_heads=1, text_width=128,
        text_layers=1, text_heads=2, context_length=7, vocab_size=20, activation="quick_gelu",
    )  # fmt: skip
    params = traverse_util.flatten_dict(random_params(clip), sep="/")
    slots = names.openai(clip.config)
    tensors = {name: np.array(slot.export(params[slot.path])) for name, slot in slots.items()}
    file = tmp_path_factory.mktemp("openai") / "vit.safetensors"
    safetensors.numpy.save_file(tensors, file)
    return file


@pytest.mark.parametrize("name", ["RN50", "ViT-Ti/4"])
def test_every_parameter_has_a_name(name):
    config = models.NAMED[name]
    shapes = jax.eval_shape(models.CLIP(config).init, jax.random.key(0))
    paths = set(traverse_util.flatten_dict(shapes, sep="/"))
    assert {slot.path for slot in names.openai(config).values()} == paths
    if config.image_tower == "vit":
        assert {slot.path for slot in names.hugging_face(config).values()} == paths


def test_tensors_are_laid_out_as_in_pytorch(tmp_path):
    params = random_params(VIT)
    models.save(tmp_path / "vit", VIT, params)
    tensors = safetensors.numpy.load_file(tmp_path / "vit/model.safetensors")
    block = params["image"]["blocks"]["0"]
    for part, name in enumerate(["q_proj", "k_proj", "v_proj"]):
        third = slice(16 * part, 16 * (part + 1))
        layer = f"vision_model.encoder.layers.0.self_attn.{name}"
        weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        np.testing.assert_array_equal(weight, block["attention"]["qkv"]["kernel"][:, third].T)
        np.testing.assert_array_equal(bias, block["attention"]["qkv"]["bias"][third])
    patches = tensors["vision_model.embeddings.patch_embedding.weight"]
    assert patches.shape == (16, 3, 4, 4)
    assert patches[5, 2, 1, 3] == params["image"]["patch_embedding"][1, 3, 2, 5]
    assert tensors["logit_scale"].shape == ()

    params = random_params(RESNET)
    models.save(tmp_path / "resnet", RESNET, params)
    tensors = safetensors.numpy.load_file(tmp_path / "resnet/model.safetensors")
    mean = params["batch_stats"]["layer2_0"]["downsample_bn"]["mean"]
    np.testing.assert_array_equal(tensors["visual.layer2.0.downsample.1.running_mean"], mean)
    kernel = params["text"]["blocks"]["0"]["attention"]["qkv"]["kernel"]
    weight = tensors["transformer.resblocks.0.attn.in_proj_weight"]
    np.testing.assert_array_equal(weight, kernel.T)


def test_openai_becomes_hugging_face(openai_file, tmp_path):
    clip, params = models.load(openai_file)
    models.save(tmp_path / "copy", clip, params)
    again, copied = models.load(tmp_path / "copy")
    assert again == clip
    assert_same_params(copied, params)


@pytest.mark.parametrize("prefix", ["text.", "module."])
def test_openclip_names(openai_file, tmp_path, prefix):
    tensors = safetensors.numpy.load_file(openai_file)
    stays = ("visual.", "logit_scale") if prefix == "text." else ()
    renamed = {name if name.startswith(stays) else prefix + name: t for name, t in tensors.items()}
    safetensors.numpy.save_file(renamed, tmp_path / "open_clip_model.safetensors")
    clip, params = models.load(tmp_path)
    assert clip.config.activation == "quick_gelu"
    assert_same_params(params, models.load(openai_file)[1])


def test_openclip_config_tells_what_tensors_do_not(openai_file, tmp_path):
    file = tmp_path / "open_clip_model.safetensors"
    file.write_bytes(openai_file.read_bytes())
    description = {
        "model_cfg": {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 4}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    config = models.load(tmp_path)[0].config
    assert (config.image_heads, config.text_heads, config.activation) == (2, 4, "gelu")
    assert config.pixel_mean == (0.5, 0.5, 0.5)
    assert models.load(tmp_path, activation="quick_gelu")[0].config.activation == "quick_gelu"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened(openai_file, tmp_path, dtype):
    tensors = safetensors.numpy.load_file(openai_file)
    halves = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(halves, tmp_path / "half.safetensors")
    _, params = models.load(tmp_path / "half.safetensors")
    _, exact = models.load(openai_file)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), exact)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert_same_params(params, rounded)

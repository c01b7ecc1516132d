"""Checkpoints in and out: parity with other libraries, round trips, and what is refused."""

import functools
import importlib.util
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from clipdef_jax import models
from clipdef_jax.errors import UserError
from clipdef_jax.models import weights

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


@functools.partial(jax.jit, static_argnums=0)
def encode(clip, params, pixels, tokens):
    return clip.encode_image(params, pixels), clip.encode_text(params, tokens)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assert_same_tensors(file, other):
    ours, theirs = (safetensors.numpy.load_file(path) for path in (file, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape, name
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def assert_same_params(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", ["openai_clip_vit_tiny", "openai_clip_resnet_tiny"])
def test_openai_features_are_equal(golden, name):
    clip, params = models.load(golden / f"{name}.safetensors")
    expected = np.load(golden / f"{name}.npz")
    pixels = expected["pixel_values_nchw"].transpose(0, 2, 3, 1)
    image, text = encode(clip, params, pixels, expected["input_ids"])
    np.testing.assert_allclose(image, expected["image_features"], atol=1e-5)
    np.testing.assert_allclose(text, expected["text_features"], atol=1e-5)
    np.testing.assert_allclose(clip.log_scale(params), expected["log_scale"], atol=1e-6)


def test_openai_constructor_arguments_are_read_off_the_shapes(golden):
    for name in ("openai_clip_vit_tiny", "openai_clip_resnet_tiny"):
        file = golden / f"{name}.safetensors"
        with safetensors.safe_open(file, "numpy") as stored:
            given = json.loads(stored.metadata()["config"])
        config = models.load(file)[0].config
        layers = given["vision_layers"]
        assert config.image_layers == (tuple(layers) if isinstance(layers, list) else layers)
        assert config.image_size == given["image_resolution"]
        assert config.image_width == given["vision_width"]
        assert config.patch_size == given["vision_patch_size"] or isinstance(layers, list)
        assert config.embed_dim == given["embed_dim"]
        assert config.text_width == given["transformer_width"]
        assert config.text_layers == given["transformer_layers"]
        assert config.text_heads == given["transformer_heads"]
        assert config.context_length == given["context_length"]
        assert config.vocab_size == given["vocab_size"]


def test_hugging_face_features_and_logits_are_equal(golden):
    clip, params = models.load(golden / "hf_clip_tiny")
    expected = np.load(golden / "hf_clip_tiny" / "expected.npz")
    pixels = expected["pixel_values_nchw"].transpose(0, 2, 3, 1)
    image, text = map(unit, encode(clip, params, pixels, expected["input_ids"]))
    np.testing.assert_allclose(image, expected["image_embeds"], atol=1e-5)
    np.testing.assert_allclose(text, expected["text_embeds"], atol=1e-5)
    logits = np.exp(clip.log_scale(params)) * image @ text.T
    # The scale of this model is 2,915: logits go up to 1,400.
    np.testing.assert_allclose(logits, expected["logits_per_image"], rtol=1e-4, atol=1e-4)


def test_hugging_face_through_us_is_unchanged(golden, tmp_path):
    source = golden / "hf_clip_tiny"
    clip, params = models.load(source)
    models.save(tmp_path / "copy", clip, params)
    assert_same_tensors(tmp_path / "copy/model.safetensors", source / "model.safetensors")
    again, _ = models.load(tmp_path / "copy")
    assert again == clip
    for name in ("config.json", "preprocessor_config.json"):
        original = json.loads((source / name).read_text())
        copy = json.loads((tmp_path / "copy" / name).read_text())
        for part in (None, "text_config", "vision_config"):
            there, here = (original, copy) if part is None else (original.get(part), copy.get(part))
            for field, value in (here or {}).items():
                if field != "bos_token_id" and not isinstance(value, dict):
                    assert value == pytest.approx(there[field]), (name, part, field)


@pytest.mark.parametrize("clip", [VIT, RESNET], ids=["vit", "resnet"])
def test_round_trip(clip, tmp_path):
    params = random_params(clip)
    models.save(tmp_path / "deep/model", clip, params)
    again, copied = models.load(tmp_path / "deep/model")
    assert again.config.to_dict() == clip.config.to_dict() | {
        name: getattr(again.config, name) for name in ("image_mlp_width", "text_mlp_width")
    }
    assert_same_params(copied, params)
    assert sorted(file.name for file in (tmp_path / "deep").iterdir()) == ["model"]


def test_resnet_keeps_openai_names(golden, tmp_path):
    file = golden / "openai_clip_resnet_tiny.safetensors"
    clip, params = models.load(file)
    models.save(tmp_path / "copy", clip, params)
    tensors = safetensors.numpy.load_file(file)
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    safetensors.numpy.save_file(tensors, tmp_path / "expected.safetensors")
    assert_same_tensors(tmp_path / "copy/model.safetensors", tmp_path / "expected.safetensors")


def test_preprocessing_and_policy_travel(tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    config = VIT.config.to_dict() | {"pixel_mean": mean, "pixel_std": std}
    clip = models.CLIP(models.CLIPConfig.from_dict(config))
    models.save(tmp_path / "model", clip, random_params(clip))
    again, _ = models.load(tmp_path / "model", dtype="bfloat16", remat=True)
    assert (again.config.pixel_mean, again.config.pixel_std) == (mean, std)
    assert (again.dtype, again.remat) == ("bfloat16", True)
    folder = tmp_path / "model"
    nested = {"image_processor": json.loads((folder / "preprocessor_config.json").read_text())}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert models.load(folder)[0].config.pixel_mean == mean


def test_transformers_reads_the_config(tmp_path):
    transformers = pytest.importorskip("transformers")
    models.save(tmp_path / "model", VIT, random_params(VIT))
    config = transformers.CLIPConfig.from_pretrained(tmp_path / "model")
    assert config.projection_dim == 6
    assert config.text_config.hidden_size == 8
    assert config.text_config.intermediate_size == 32
    assert config.text_config.eos_token_id == 2  # "The largest id", in its way of saying so.
    assert config.vision_config.patch_size == 4
    assert config.vision_config.hidden_act == "gelu"


def test_transformers_loads_what_we_save_and_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="transformers.CLIPModel needs PyTorch")
    import transformers

    params = jax.tree.map(lambda leaf: 0.3 * leaf, random_params(VIT))
    models.save(tmp_path / "model", VIT, params)
    theirs, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(report.values())
    generator = np.random.default_rng(0)
    pixels = generator.normal(size=(3, 8, 8, 3)).astype(np.float32)
    tokens = generator.integers(0, 20, (3, 7)).astype(np.int32)
    with torch.no_grad():
        output = theirs(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2).copy()),
        )
    image, text = map(unit, encode(VIT, params, pixels, tokens))
    np.testing.assert_allclose(image, output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(text, output.text_embeds.numpy(), atol=1e-5)


def shard(folder):
    """Splits the model of a folder over two files and an index."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    weight_map = {}
    for number in (1, 2):
        file = f"model-0000{number}-of-00002.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number - 1 :: 2]}
        safetensors.numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_sharded_files_are_read_together(tmp_path):
    params = random_params(VIT)
    models.save(tmp_path / "model", VIT, params)
    index = shard(tmp_path / "model")
    for path in (index, tmp_path / "model"):
        assert_same_params(models.load(path)[1], params)
    (tmp_path / "model/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors', which is not"):
        models.load(tmp_path / "model")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    models.save(tmp_path / "model", VIT, random_params(VIT))
    file = tmp_path / "model/model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    del tensors["text_model.final_layer_norm.bias"]
    tensors["text_model.extra"] = np.zeros((3, 2), np.float32)
    tensors["text_model.embeddings.position_ids"] = np.zeros((1, 7), np.int64)  # Older files.
    tensors["visual_projection.weight"] = np.zeros((5, 16), np.float32)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        models.load(tmp_path / "model")
    message = str(caught.value)
    assert "\n" not in message
    assert "text_model.final_layer_norm.bias (8,) is missing" in message
    assert "text_model.extra (3, 2) is not part of the model" in message
    assert "visual_projection.weight has shape (5, 16), expected (6, 16)" in message
    assert "position_ids" not in message


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing: give the whole folder"),
        (lambda d: (d / "config.json").write_text("{"), "config.json cannot be read as JSON"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "siglip"}'),
            "has model_type 'siglip'",
        ),
        (lambda d: cut(d / "model.safetensors"), "cannot be read as safetensors"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no model: expected"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "is a pickle"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(tmp_path, damage, message):
    models.save(tmp_path / "model", VIT, random_params(VIT))
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message) as caught:
        models.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no model at"):
        models.load(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="is no model file: expected"):
        models.load(tmp_path / "notes.txt")

    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"it lacks the tensors visual\.conv1\.weight"):
        models.load(tmp_path)
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(UserError, match=r"several models, a\.safetensors, b\.safetensors"):
        models.load(tmp_path)

    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(UserError, match=r"names '\.\./b.safetensors', expected .* beside it"):
        models.load(index)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_a_pickle_needs_pytorch(tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match="needs PyTorch, which is not installed"):
        models.load(tmp_path / "model.pt", allow_pickle=True)


def test_a_pickle_is_read_as_weights_only(tmp_path):
    torch = pytest.importorskip("torch", reason="reading a pickle needs PyTorch")
    params = random_params(RESNET)
    models.save(tmp_path / "model", RESNET, params)
    tensors = safetensors.numpy.load_file(tmp_path / "model/model.safetensors")
    stored = {"module." + name: torch.tensor(tensor) for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": stored}, tmp_path / "model.pt")
    assert_same_params(models.load(tmp_path / "model.pt", allow_pickle=True)[1], params)

    class Code:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"state_dict": Code()}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="cannot be read as weights only"):
        models.load(tmp_path / "code.pt", allow_pickle=True)


def test_saving_again_replaces_the_model_and_keeps_other_files(tmp_path):
    folder = tmp_path / "model"
    models.save(folder, VIT, random_params(VIT))
    (folder / "tokenizer.json").write_text("{}")
    params = random_params(RESNET)
    models.save(folder, RESNET, params)
    clip, copied = models.load(folder)
    assert clip == RESNET
    assert_same_params(copied, params)
    assert (folder / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    def disk_full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    folder = tmp_path / "model"
    monkeypatch.setattr(weights.safetensors.numpy, "save_file", disk_full)
    with pytest.raises(UserError, match=r"cannot write the model to .*: No space left"):
        models.save(folder, VIT, random_params(VIT))
    assert list(tmp_path.iterdir()) == []

    monkeypatch.undo()
    models.save(folder, VIT, random_params(VIT))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(weights.safetensors.numpy, "save_file", disk_full)
    with pytest.raises(UserError):
        models.save(folder, RESNET, random_params(RESNET))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_hugging_face_cannot_be_told_an_end_token_of_two(tmp_path):
    clip = models.CLIP(models.CLIPConfig.from_dict(VIT.config.to_dict() | {"eos_token_id": 2}))
    with pytest.raises(UserError, match="end-of-text token is 2"):
        models.save(tmp_path / "model", clip, random_params(clip))
    assert list(tmp_path.iterdir()) == []

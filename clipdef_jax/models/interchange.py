"""The shape of a CLIP as other libraries write it down beside the weights, or do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipdef_jax.errors import UserError
from clipdef_jax.models.config import PIXEL_MEAN, PIXEL_STD, CLIPConfig

Shapes = Mapping[str, tuple[int, ...]]

# Hugging Face leaves a field out of config.json where it has the default of its class.
_HF_TEXT: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "eos_token_id": 49407,
}  # fmt: skip
_HF_VISION: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip

# Hugging Face once wrote this end token for all of OpenAI's models, and takes it to this day to
# mean what OpenAI does: the feature is at the largest id.
_HF_LARGEST_ID = 2


def from_hugging_face(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> CLIPConfig:
    """Returns the shape that a Hugging Face folder describes.

    Args:
      config: its config.json.
      preprocessor: its preprocessor_config.json; {} for the original preprocessing.

    Raises:
      UserError: not a CLIP, or one of a kind that is not supported.
    """
    if config.get("model_type") != "clip":
        raise UserError(
            f"config.json has model_type {config.get('model_type')!r}, expected 'clip': the folder "
            "must hold a transformers.CLIPModel"
        )
    text = _HF_TEXT | dict(config.get("text_config_dict") or config.get("text_config") or {})
    vision = _HF_VISION | dict(
        config.get("vision_config_dict") or config.get("vision_config") or {}
    )
    for field in ("hidden_act", "layer_norm_eps"):
        if text[field] != vision[field]:
            raise UserError(
                f"config.json: {field} is {text[field]!r} for text and {vision[field]!r} for "
                "images; only models with one for both are supported"
            )
    if vision["num_channels"] != 3:
        raise UserError(f"config.json: num_channels is {vision['num_channels']!r}, expected 3")
    eos = text["eos_token_id"]
    return CLIPConfig(
        image_tower="vit",
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        image_width=vision["hidden_size"],
        image_layers=vision["num_hidden_layers"],
        image_heads=vision["num_attention_heads"],
        image_mlp_width=vision["intermediate_size"],
        embed_dim=config.get("projection_dim", 512),
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        text_mlp_width=text["intermediate_size"],
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        eos_token_id=None if eos == _HF_LARGEST_ID else eos,
        activation=text["hidden_act"],
        layer_norm_eps=text["layer_norm_eps"],
        initial_log_scale=config.get("logit_scale_init_value", 2.6592),
        **_normalisation(preprocessor),
    )


def to_hugging_face(config: CLIPConfig) -> dict[str, Any]:
    """Returns config.json for `transformers.CLIPModel`.

    Raises:
      UserError: the model cannot be told to Hugging Face.
    """
    if config.eos_token_id == _HF_LARGEST_ID:
        raise UserError(
            "the end-of-text token is 2, which Hugging Face's CLIP takes for 'the largest id': "
            "use a tokenizer that gives it another id"
        )
    shared = {
        "hidden_act": config.activation,
        "layer_norm_eps": config.layer_norm_eps,
        "projection_dim": config.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": config.initial_log_scale,
        "text_config": shared | {
            "model_type": "clip_text_model",
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_width,
            "intermediate_size": config.text_mlp_width or 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.context_length,
            # The tokenizer's affair; the default, 49406, is beyond a small vocabulary.
            "bos_token_id": None,
            "eos_token_id": (
                _HF_LARGEST_ID if config.eos_token_id is None else config.eos_token_id
            ),
        },
        "vision_config": shared | {
            "model_type": "clip_vision_model",
            "hidden_size": config.image_width,
            "intermediate_size": config.image_mlp_width or 4 * config.image_width,
            "num_hidden_layers": config.image_layers,
            "num_attention_heads": config.image_heads,
            "num_channels": 3,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        },
    }  # fmt: skip


def preprocessor(config: CLIPConfig) -> dict[str, Any]:
    """Returns preprocessor_config.json: resize of the short side, centre crop, mean and std."""
    side = config.image_size
    fields: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": config.pixel_mean is not None,
    }
    if config.pixel_mean is not None and config.pixel_std is not None:
        fields |= {"image_mean": list(config.pixel_mean), "image_std": list(config.pixel_std)}
    return fields


def _normalisation(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    if not preprocessor.get("do_normalize", True):
        return {"pixel_mean": None, "pixel_std": None}
    return {
        "pixel_mean": tuple(preprocessor.get("image_mean", PIXEL_MEAN)),
        "pixel_std": tuple(preprocessor.get("image_std", PIXEL_STD)),
    }


def from_openai(shapes: Shapes) -> dict[str, Any]:
    """Returns the fields of `CLIPConfig` that the shapes of OpenAI-named tensors tell.

    Heads are 64 wide and the activation is QuickGELU in all of OpenAI's models; no tensor says so.

    Raises:
      UserError: a tensor is missing that every CLIP has.
    """
    vit = "visual.proj" in shapes
    needed = ["visual.conv1.weight", "positional_embedding", "token_embedding.weight"]
    needed += ["text_projection", "transformer.resblocks.0.mlp.c_fc.weight"]
    if vit:
        needed += ["visual.positional_embedding", "visual.transformer.resblocks.0.mlp.c_fc.weight"]
    else:
        needed += ["visual.attnpool.positional_embedding", "visual.layer1.0.conv1.weight"]
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise UserError(f"not an OpenAI-named CLIP: it lacks the tensors {', '.join(missing)}")

    context_length, text_width = shapes["positional_embedding"]
    fields: dict[str, Any] = {
        "context_length": context_length,
        "vocab_size": shapes["token_embedding.weight"][0],
        "embed_dim": shapes["text_projection"][1],
        "text_width": text_width,
        "text_heads": max(1, text_width // 64),
        "text_layers": _count(shapes, "transformer.resblocks."),
        "text_mlp_width": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "activation": "quick_gelu",
    }
    if vit:
        width, _, _, patch = shapes["visual.conv1.weight"]
        grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
        return fields | {
            "image_tower": "vit",
            "image_size": patch * grid,
            "patch_size": patch,
            "image_width": width,
            "image_heads": max(1, width // 64),
            "image_layers": _count(shapes, "visual.transformer.resblocks."),
            "image_mlp_width": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        }
    width = shapes["visual.layer1.0.conv1.weight"][0]
    grid = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    return fields | {
        "image_tower": "resnet",
        "image_size": 32 * grid,
        "image_width": width,
        "image_heads": max(1, width * 32 // 64),
        "image_layers": tuple(_count(shapes, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
    }


def from_open_clip(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `fields` of `from_openai`, with what open_clip_config.json knows better.

    Args:
      config: open_clip_config.json, as OpenCLIP puts it beside weights on the Hugging Face hub.
      fields: what the tensors tell.
    """
    model, preprocess = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    known = dict(fields)
    known["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    known["text_heads"] = text.get("heads", fields["text_heads"])
    if fields["image_tower"] == "vit":
        known["image_heads"] = fields["image_width"] // vision.get("head_width", 64)
    if "mean" in preprocess and "std" in preprocess:
        known |= {"pixel_mean": tuple(preprocess["mean"]), "pixel_std": tuple(preprocess["std"])}
    return known


def _count(shapes: Shapes, prefix: str) -> int:
    """Returns how many numbers follow `prefix` in the names."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})

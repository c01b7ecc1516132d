"""What other libraries call our parameters, and how they lay them out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from clipdef_jax.models.config import CLIPConfig


class Slot(NamedTuple):
    """Where a tensor of a checkpoint belongs.

    Attributes:
      path: the parameter, as "image/blocks/0/mlp/up/kernel".
      layout: "same"; "linear": (out, in) there, (in, out) here; "conv": OIHW there, HWIO here.
      third: which third of the parameter's last axis the tensor is; None: all of it.
    """

    path: str
    layout: Literal["same", "linear", "conv"] = "same"
    third: int | None = None

    def export(self, parameter: np.ndarray) -> np.ndarray:
        """Returns the tensor that holds our parameter, or its third."""
        if self.third is not None:
            parameter = np.split(parameter, 3, axis=-1)[self.third]
        match self.layout:
            case "linear":
                return parameter.T
            case "conv":
                return parameter.transpose(3, 2, 0, 1)
            case _:
                return parameter

    def adopt(self, tensor: np.ndarray) -> np.ndarray:
        """Returns our parameter, or its third, out of a tensor."""
        match self.layout:
            case "linear":
                return tensor.T
            case "conv":
                return tensor.transpose(2, 3, 1, 0)
            case _:
                return tensor


def openai(config: CLIPConfig) -> dict[str, Slot]:
    """Returns the tensors of an OpenAI checkpoint: `CLIP.state_dict()` of the released code.

    OpenCLIP uses these names too, with "text." before the text tower's in its newer models.
    """
    names = {
        "logit_scale": Slot("log_scale"),
        "token_embedding.weight": Slot("text/token_embedding"),
        "positional_embedding": Slot("text/positional_embedding"),
        "text_projection": Slot("text/projection"),
        **_norm("ln_final", "text/ln_final"),
        **_openai_blocks("transformer", "text", config.text_layers),
    }
    if isinstance(config.image_layers, tuple):
        return names | _openai_resnet(config.image_layers)
    return names | {
        "visual.class_embedding": Slot("image/class_embedding"),
        "visual.conv1.weight": Slot("image/patch_embedding", "conv"),
        "visual.positional_embedding": Slot("image/positional_embedding"),
        "visual.proj": Slot("image/projection"),
        **_norm("visual.ln_pre", "image/ln_pre"),
        **_norm("visual.ln_post", "image/ln_post"),
        **_openai_blocks("visual.transformer", "image", config.image_layers),
    }


def hugging_face(config: CLIPConfig) -> dict[str, Slot]:
    """Returns the tensors of `transformers.CLIPModel`, which has no ResNets."""
    assert isinstance(config.image_layers, int)
    return {
        "logit_scale": Slot("log_scale"),
        "text_model.embeddings.token_embedding.weight": Slot("text/token_embedding"),
        "text_model.embeddings.position_embedding.weight": Slot("text/positional_embedding"),
        "text_projection.weight": Slot("text/projection", "linear"),
        "vision_model.embeddings.class_embedding": Slot("image/class_embedding"),
        "vision_model.embeddings.patch_embedding.weight": Slot("image/patch_embedding", "conv"),
        "vision_model.embeddings.position_embedding.weight": Slot("image/positional_embedding"),
        "visual_projection.weight": Slot("image/projection", "linear"),
        **_norm("text_model.final_layer_norm", "text/ln_final"),
        # The first of these two is misspelled there, for good.
        **_norm("vision_model.pre_layrnorm", "image/ln_pre"),
        **_norm("vision_model.post_layernorm", "image/ln_post"),
        **_hugging_face_blocks("text_model", "text", config.text_layers),
        **_hugging_face_blocks("vision_model", "image", config.image_layers),
    }


def _norm(name: str, path: str) -> dict[str, Slot]:
    return {f"{name}.weight": Slot(f"{path}/scale"), f"{name}.bias": Slot(f"{path}/bias")}


def _linear(name: str, path: str, third: int | None = None) -> dict[str, Slot]:
    return {
        f"{name}.weight": Slot(f"{path}/kernel", "linear", third),
        f"{name}.bias": Slot(f"{path}/bias", "same", third),
    }


def _openai_blocks(tower: str, ours: str, layers: int) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for i in range(layers):
        there, here = f"{tower}.resblocks.{i}", f"{ours}/blocks/{i}"
        slots |= {
            f"{there}.attn.in_proj_weight": Slot(f"{here}/attention/qkv/kernel", "linear"),
            f"{there}.attn.in_proj_bias": Slot(f"{here}/attention/qkv/bias"),
            **_linear(f"{there}.attn.out_proj", f"{here}/attention/out"),
            **_linear(f"{there}.mlp.c_fc", f"{here}/mlp/up"),
            **_linear(f"{there}.mlp.c_proj", f"{here}/mlp/down"),
            **_norm(f"{there}.ln_1", f"{here}/ln_1"),
            **_norm(f"{there}.ln_2", f"{here}/ln_2"),
        }
    return slots


def _hugging_face_blocks(tower: str, ours: str, layers: int) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for i in range(layers):
        there, here = f"{tower}.encoder.layers.{i}", f"{ours}/blocks/{i}"
        slots |= {
            **_linear(f"{there}.self_attn.q_proj", f"{here}/attention/qkv", third=0),
            **_linear(f"{there}.self_attn.k_proj", f"{here}/attention/qkv", third=1),
            **_linear(f"{there}.self_attn.v_proj", f"{here}/attention/qkv", third=2),
            **_linear(f"{there}.self_attn.out_proj", f"{here}/attention/out"),
            **_linear(f"{there}.mlp.fc1", f"{here}/mlp/up"),
            **_linear(f"{there}.mlp.fc2", f"{here}/mlp/down"),
            **_norm(f"{there}.layer_norm1", f"{here}/ln_1"),
            **_norm(f"{there}.layer_norm2", f"{here}/ln_2"),
        }
    return slots


def _openai_resnet(layers: tuple[int, ...]) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for i in (1, 2, 3):
        slots |= _conv(f"visual.conv{i}", f"conv{i}") | _batch_norm(f"visual.bn{i}", f"bn{i}")
    for stage, blocks in enumerate(layers, start=1):
        for block in range(blocks):
            there, here = f"visual.layer{stage}.{block}", f"layer{stage}_{block}"
            for i in (1, 2, 3):
                slots |= _conv(f"{there}.conv{i}", f"{here}/conv{i}")
                slots |= _batch_norm(f"{there}.bn{i}", f"{here}/bn{i}")
            if block == 0:  # Every stage's first block changes the number of channels.
                slots |= _conv(f"{there}.downsample.0", f"{here}/downsample_conv")
                slots |= _batch_norm(f"{there}.downsample.1", f"{here}/downsample_bn")
    pool = "image/attention_pool"
    return slots | {
        "visual.attnpool.positional_embedding": Slot(f"{pool}/positional_embedding"),
        **_linear("visual.attnpool.q_proj", f"{pool}/query"),
        **_linear("visual.attnpool.k_proj", f"{pool}/key"),
        **_linear("visual.attnpool.v_proj", f"{pool}/value"),
        **_linear("visual.attnpool.c_proj", f"{pool}/out"),
    }


def _conv(name: str, path: str) -> dict[str, Slot]:
    return {f"{name}.weight": Slot(f"image/{path}/kernel", "conv")}


def _batch_norm(name: str, path: str) -> dict[str, Slot]:
    return _norm(name, f"image/{path}") | {
        f"{name}.running_mean": Slot(f"batch_stats/{path}/mean"),
        f"{name}.running_var": Slot(f"batch_stats/{path}/var"),
    }

"""CLIP as pure functions of its parameters: shape and policy in, features out.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from clipdef_jax.errors import UserError
from clipdef_jax.models.config import CLIPConfig, named
from clipdef_jax.models.resnet import ModifiedResNet
from clipdef_jax.models.text import TextTransformer
from clipdef_jax.models.transformer import Transformer
from clipdef_jax.models.vit import VisionTransformer

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class CLIP:
    """A CLIP without its weights: every method is a pure function of the parameters.

    Parameters are a nested dict of float32 arrays, {"image": ..., "text": ..., "log_scale": ()},
    and, for a ResNet, {"batch_stats": ...}, which no gradient changes: see `split_statistics`.

    Attributes:
      config: the shape, and the preprocessing it expects.
      dtype: compute dtype; layer norms, softmax, batch statistics and features stay float32.
      remat: recompute each block's activations in the backward pass instead of keeping them.
    """

    config: CLIPConfig
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"model dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Returns fresh parameters, initialised as the original CLIP.

        Args:
          rng: a key. Under `jax.jit` with `out_shardings` each device makes only its part.
        """
        image_rng, text_rng = jax.random.split(rng)
        side = self.config.image_size
        pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        tokens = jax.ShapeDtypeStruct((1, self.config.context_length), jnp.int32)
        image = self._image_tower().lazy_init(image_rng, pixels)
        params = {
            "image": image["params"],
            "text": self._text_tower().lazy_init(text_rng, tokens)["params"],
            "log_scale": jnp.asarray(self.config.initial_log_scale, jnp.float32),
        }
        if "batch_stats" in image:
            params["batch_stats"] = image["batch_stats"]
        return params

    def encode_image(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Encodes pictures for evaluation: batch normalisation uses the running statistics.

        Args:
          params: as `init` makes them.
          pixels: (B, H, W, 3) float, as `preprocess` makes them.

        Returns:
          Features (B, D) float32, not normalised.
        """
        self._check_pixels(pixels)
        features = self._image_tower().apply(_image_variables(params), pixels)
        return cast(jax.Array, features)

    def encode_image_train(
        self, params: Params, pixels: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes pictures for training: batch normalisation uses the batch, all of it.

        Under `jax.jit` a batch sharded over devices is still one batch.

        Args:
          params: as `init` makes them.
          pixels: (B, H, W, 3) float, as `preprocess` makes them.

        Returns:
          Features (B, D) float32, not normalised, and the statistics after this batch, in the
          form of `split_statistics`: {} for a ViT.
        """
        self._check_pixels(pixels)
        features, statistics = self._image_tower(train=True).apply(
            _image_variables(params), pixels, mutable=["batch_stats"]
        )
        return features, dict(statistics)

    def encode_text(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          params: as `init` makes them.
          tokens: (B, L) int32, L at most the context length.

        Returns:
          Features (B, D) float32, not normalised.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context_length:
            raise UserError(
                f"tokens have shape {tokens.shape}, expected (B, L) with L at most "
                f"context_length {self.config.context_length}"
            )
        features = self._text_tower().apply({"params": params["text"]}, tokens)
        return cast(jax.Array, features)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """Turns pictures into what `encode_image` expects.

        Args:
          images: uint8 (B, H, W, 3), RGB, already of the model's size.

        Returns:
          float32 (B, H, W, 3).
        """
        pixels = images.astype(jnp.float32) / 255
        if self.config.pixel_mean is not None:
            mean = jnp.asarray(self.config.pixel_mean, jnp.float32).reshape(1, 1, 1, 3)
            std = jnp.asarray(self.config.pixel_std, jnp.float32).reshape(1, 1, 1, 3)
            pixels = (pixels - mean) / std
        return pixels

    def log_scale(self, params: Params) -> jax.Array:
        """Returns the logarithm of the logit scale, a float32 scalar."""
        return params["log_scale"]

    def _image_tower(self, train: bool = False) -> nn.Module:
        config = self.config
        if isinstance(config.image_layers, tuple):
            return ModifiedResNet(
                layers=config.image_layers,
                width=config.image_width,
                heads=config.image_heads,
                embed_dim=config.embed_dim,
                train=train,
                remat=self.remat,
                dtype=self.dtype,
            )
        blocks = self._transformer(
            layers=config.image_layers,
            heads=config.image_heads,
            mlp_width=config.image_mlp_width or 4 * config.image_width,
            causal=False,
        )
        return VisionTransformer(
            patch_size=config.patch_size,
            width=config.image_width,
            embed_dim=config.embed_dim,
            blocks=blocks,
            eps=config.layer_norm_eps,
            dtype=self.dtype,
        )

    def _text_tower(self) -> nn.Module:
        config = self.config
        blocks = self._transformer(
            layers=config.text_layers,
            heads=config.text_heads,
            mlp_width=config.text_mlp_width or 4 * config.text_width,
            causal=True,
        )
        return TextTransformer(
            vocab_size=config.vocab_size,
            context_length=config.context_length,
            width=config.text_width,
            embed_dim=config.embed_dim,
            eos_token_id=config.eos_token_id,
            blocks=blocks,
            eps=config.layer_norm_eps,
            dtype=self.dtype,
        )

    def _transformer(self, **shape: Any) -> Transformer:
        return Transformer(
            **shape,
            activation=self.config.activation,
            eps=self.config.layer_norm_eps,
            remat=self.remat,
            dtype=self.dtype,
        )

    def _check_pixels(self, pixels: jax.Array) -> None:
        side = self.config.image_size
        if pixels.shape[1:] != (side, side, 3):
            raise UserError(
                f"pixels have shape {pixels.shape}, expected (B, {side}, {side}, 3): make the "
                f"source's image side and the model's image_size equal"
            )


def _image_variables(params: Params) -> dict[str, Any]:
    return {"params": params["image"]} | split_statistics(params)[1]


def split_statistics(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into what gradients change and what batches do.

    `weights | statistics` gives the parameters back.

    Returns:
      Weights, and batch statistics: {} for a model without batch normalisation.
    """
    weights = {name: value for name, value in params.items() if name != "batch_stats"}
    statistics = {name: value for name, value in params.items() if name == "batch_stats"}
    return weights, statistics


def get(
    name: str,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
    **overrides: Any,
) -> CLIP:
    """Returns the CLIP called `name`.

    >>> get("ViT-Ti/4", vocab_size=1000).config.image_size
    32

    Args:
      name: one of `models.NAMED`: the original shapes, and two small ones.
      dtype: compute dtype.
      remat: recompute each block's activations in the backward pass instead of keeping them.
      **overrides: fields of `CLIPConfig` to replace.

    Raises:
      UserError: no such name or field, or fields that make no model.
    """
    return CLIP(named(name, overrides), dtype, remat)

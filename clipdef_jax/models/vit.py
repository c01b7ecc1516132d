"""The vision transformer of CLIP.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", section 2.4, and the released code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from clipdef_jax.models.linear import matmul
from clipdef_jax.models.transformer import LayerNorm, Transformer, normal, torch_default


class VisionTransformer(nn.Module):
    """Patches and a class token through a transformer; the class token is the feature.

    Attributes:
      patch_size: side of a patch in pixels.
      width: width of the transformer.
      embed_dim: size D of a feature.
      blocks: the transformer itself.
      eps: added to the variance by the layer norms.
      dtype: compute dtype.
    """

    patch_size: int
    width: int
    embed_dim: int
    blocks: Transformer
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes pictures.

        Args:
          pixels: preprocessed (B, H, W, 3), H and W multiples of the patch size.

        Returns:
          Features (B, D) float32, not normalised.
        """
        B, H, W, C = pixels.shape
        P = self.patch_size
        # A convolution with stride P is a matrix product over patches, and faster as one.
        kernel = self.param("patch_embedding", torch_default, (P, P, C, self.width))
        patches = pixels.astype(self.dtype).reshape(B, H // P, P, W // P, P, C)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, P * P * C)
        x = matmul(patches, kernel.reshape(P * P * C, self.width).astype(self.dtype))

        std = self.width**-0.5
        token = self.param("class_embedding", normal(std), (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (B, 1, self.width)), x], axis=1)
        position = self.param("positional_embedding", normal(std), x.shape[1:])
        x = LayerNorm(self.eps, self.dtype, name="ln_pre")(x + position[None].astype(self.dtype))

        x = self.blocks(x)
        x = LayerNorm(self.eps, self.dtype, name="ln_post")(x[:, 0])
        return x @ self.param("projection", normal(std), (self.width, self.embed_dim))

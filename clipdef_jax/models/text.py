"""The text transformer of CLIP.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", section 2.4, and the released code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from clipdef_jax.models.transformer import LayerNorm, Transformer, normal


class TextTransformer(nn.Module):
    """A causal transformer over tokens; the end-of-text position is the feature.

    Attributes:
      vocab_size: number of tokens.
      context_length: most tokens in a text.
      width: width of the transformer.
      embed_dim: size D of a feature.
      eos_token_id: a text ends at the first of these; None: at the first of its largest id.
      blocks: the transformer itself.
      eps: added to the variance by the layer norms.
      dtype: compute dtype.
    """

    vocab_size: int
    context_length: int
    width: int
    embed_dim: int
    eos_token_id: int | None
    blocks: Transformer
    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          tokens_BxL: token ids (B, L) int32, L at most `context_length`. What follows the end of
            a text does not count, so a batch of short texts may be cut to its longest.

        Returns:
          Features (B, D) float32, not normalised.
        """
        L = tokens_BxL.shape[1]
        table = self.param("token_embedding", normal(0.02), (self.vocab_size, self.width))
        position = self.param(
            "positional_embedding", normal(0.01), (self.context_length, self.width)
        )
        x = table[tokens_BxL].astype(self.dtype) + position[None, :L].astype(self.dtype)
        x = self.blocks(x)

        ends_BxL = tokens_BxL if self.eos_token_id is None else tokens_BxL == self.eos_token_id
        end_B = jnp.argmax(ends_BxL, axis=1)
        # Only the row that is read goes through the norm and the projection.
        x = jnp.take_along_axis(x, end_B[:, None, None], axis=1)[:, 0]
        x = LayerNorm(self.eps, self.dtype, name="ln_final")(x)
        return x @ self.param("projection", normal(self.width**-0.5), (self.width, self.embed_dim))

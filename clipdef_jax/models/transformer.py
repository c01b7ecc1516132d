"""The stack of residual attention blocks that the image and the text tower share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from clipdef_jax.models.linear import Dense

normal = nn.initializers.normal

# What PyTorch gives a layer that nobody initialises: uniform with bound 1 / sqrt(fan_in).
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class LayerNorm(nn.Module):
    """Layer normalisation in float32 whatever comes in, handed on in `dtype`."""

    eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of (..., W)."""
        scale_W = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias_W = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        return (x * scale_W.reshape(shape) + bias_W.reshape(shape)).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, the three input projections in one matrix."""

    heads: int
    causal: bool
    out_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x_BxLxW: jax.Array) -> jax.Array:
        """Mixes the positions of (B, L, W)."""
        B, L, W = x_BxLxW.shape
        qkv = Dense(3 * W, normal(W**-0.5), self.dtype, name="qkv")(x_BxLxW)
        query, key, value = jnp.moveaxis(qkv.reshape(B, L, 3, self.heads, W // self.heads), 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        out = Dense(W, normal(self.out_std), self.dtype, name="out")
        return out(mixed.reshape(B, L, W))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    width: int
    activation: str
    out_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps each row of (..., W)."""
        W = x.shape[-1]
        up = Dense(self.width, normal((2 * W) ** -0.5), self.dtype, name="up")
        down = Dense(W, normal(self.out_std), self.dtype, name="down")
        return down(ACTIVATIONS[self.activation](up(x)))


class Block(nn.Module):
    """One pre-norm residual block: attention, then MLP."""

    heads: int
    mlp_width: int
    activation: str
    causal: bool
    eps: float
    out_std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, L, W) to (B, L, W)."""
        attention = Attention(self.heads, self.causal, self.out_std, self.dtype, name="attention")
        mlp = MLP(self.mlp_width, self.activation, self.out_std, self.dtype, name="mlp")
        x = x + attention(LayerNorm(self.eps, self.dtype, name="ln_1")(x))
        return x + mlp(LayerNorm(self.eps, self.dtype, name="ln_2")(x))


class Transformer(nn.Module):
    """`layers` residual blocks, named "0", "1", ...

    Weights start as in `CLIP.initialize_parameters` of the released code. It does that for the
    text tower alone and leaves the image tower to PyTorch's defaults; here, as in Hugging Face's
    version, both start alike.

    Attributes:
      layers: number of blocks.
      heads: attention heads of a block.
      mlp_width: hidden width of a block's MLP.
      activation: a key of `ACTIVATIONS`.
      causal: whether a position sees only itself and those before it.
      eps: added to the variance by the layer norms.
      remat: recompute a block's activations in the backward pass instead of keeping them.
      dtype: compute dtype.
    """

    layers: int
    heads: int
    mlp_width: int
    activation: str
    causal: bool
    eps: float
    remat: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, L, W) to (B, L, W)."""
        block = nn.remat(Block) if self.remat else Block
        out_std = (2 * self.layers * x.shape[-1]) ** -0.5
        for layer in range(self.layers):
            x = block(
                self.heads, self.mlp_width, self.activation, self.causal, self.eps, out_std,
                self.dtype, name=str(layer),
            )(x)  # fmt: skip
        return x

"""The modified ResNet of CLIP.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", section 2.4, and the released code: a stem of three convolutions, an average pool
before every strided convolution (Zhang 2019, "Making Convolutional Networks Shift-Invariant
Again"), and attention in place of the last average pool.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from clipdef_jax.models.linear import Dense, matmul
from clipdef_jax.models.transformer import normal, torch_default


class Conv(nn.Module):
    """A convolution without bias: 1x1, or 3x3 padded by one."""

    features: int
    size: int
    dtype: DTypeLike
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", torch_default, shape).astype(self.dtype)
        if self.size == 1:
            return matmul(x, kernel[0, 0])
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's bookkeeping, in float32 whatever comes in.

    Running statistics move by a tenth of the way at a step, and the running variance counts n - 1.

    Attributes:
      train: normalise by the batch and update the running statistics, or normalise by these.
      dtype: dtype of the result.
      scale_init: where the scale starts.
    """

    train: bool
    dtype: DTypeLike
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    MOMENTUM = 0.1
    EPS = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises each channel of (B, H, W, C)."""
        C = x.shape[-1]
        scale_C = self.param("scale", self.scale_init, (C,))
        bias_C = self.param("bias", nn.initializers.zeros, (C,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (C,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (C,))
        mean_C, var_C = running_mean.value, running_var.value
        if self.train:
            values = x.astype(jnp.float32)
            count = x.size // C
            mean_C = values.mean((0, 1, 2))
            var_C = jnp.square(values - mean_C.reshape(1, 1, 1, C)).mean((0, 1, 2))
            unbiased_C = var_C * (count / max(count - 1, 1))
            keep = 1 - self.MOMENTUM
            running_mean.value = keep * running_mean.value + self.MOMENTUM * mean_C
            running_var.value = keep * running_var.value + self.MOMENTUM * unbiased_C
        factor_C = scale_C * jax.lax.rsqrt(var_C + self.EPS)
        shift_C = bias_C - mean_C * factor_C
        x = x * factor_C.reshape(1, 1, 1, C) + shift_C.reshape(1, 1, 1, C)
        return x.astype(self.dtype)


def halve(x: jax.Array) -> jax.Array:
    """Averages 2x2 squares of (B, H, W, C), H and W even."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


class Bottleneck(nn.Module):
    """A residual block of three convolutions, with `4 * width` channels out."""

    width: int
    stride: int
    train: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / stride, W / stride, 4 * width)."""
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, self.train, self.dtype)
        pool = halve if self.stride == 2 else lambda x: x

        y = nn.relu(norm(name="bn1")(conv(self.width, 1, name="conv1")(x)))
        y = nn.relu(norm(name="bn2")(conv(self.width, 3, name="conv2")(y)))
        y = conv(4 * self.width, 1, name="conv3")(pool(y))
        # Scales of zero: a block starts as the identity.
        y = norm(scale_init=nn.initializers.zeros, name="bn3")(y)
        if self.stride == 2 or x.shape[-1] != 4 * self.width:
            x = conv(4 * self.width, 1, name="downsample_conv")(pool(x))
            x = norm(name="downsample_bn")(x)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Attention of the mean over all positions to it and to each of them."""

    heads: int
    embed_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to features (B, D) float32."""
        B, _, _, C = x.shape
        x = x.reshape(B, -1, C)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        position = self.param("positional_embedding", normal(C**-0.5), x.shape[1:])
        x = x + position[None].astype(self.dtype)

        dense = partial(Dense, kernel_init=normal(C**-0.5))
        split = (B, -1, self.heads, C // self.heads)
        query = dense(C, dtype=self.dtype, name="query")(x[:, :1]).reshape(split)
        key = dense(C, dtype=self.dtype, name="key")(x).reshape(split)
        value = dense(C, dtype=self.dtype, name="value")(x).reshape(split)
        pooled = jax.nn.dot_product_attention(query, key, value).reshape(B, C)
        return dense(self.embed_dim, dtype=jnp.float32, name="out")(pooled)


class ModifiedResNet(nn.Module):
    """The image tower of RN50, RN101 and RN50x4.

    Attributes:
      layers: blocks in each of the four stages.
      width: channels of the first stage; the last has 32 times as many.
      heads: attention heads of the pool.
      embed_dim: size D of a feature.
      train: batch normalisation by the batch, or by the running statistics.
      remat: recompute a block's activations in the backward pass instead of keeping them.
      dtype: compute dtype.
    """

    layers: tuple[int, int, int, int]
    width: int
    heads: int
    embed_dim: int
    train: bool
    remat: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Encodes pictures.

        Args:
          pixels: preprocessed (B, H, W, 3), H and W multiples of 32.

        Returns:
          Features (B, D) float32, not normalised.
        """
        x = pixels.astype(self.dtype)
        for i, (features, stride) in enumerate(
            [(self.width // 2, 2), (self.width // 2, 1), (self.width, 1)], start=1
        ):
            x = Conv(features, 3, self.dtype, stride, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(self.train, self.dtype, name=f"bn{i}")(x))
        x = halve(x)

        block = nn.remat(Bottleneck) if self.remat else Bottleneck
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}_{i}"
                x = block(self.width * 2**stage, stride, self.train, self.dtype, name=name)(x)
        return AttentionPool(self.heads, self.embed_dim, self.dtype, name="attention_pool")(x)

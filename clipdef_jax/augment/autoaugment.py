"""AutoAugment as torchvision applies it to Pillow images, as one branch-free device program.

Dimensions: B images, P sub-policies, S stages (operations) of a sub-policy, 2 signs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clipdef_jax.augment import check_images
from clipdef_jax.errors import UserError

# Of each sub-policy the operations: name, probability, strength in ten steps from 0 to 9.
Policy = tuple[tuple[tuple[str, float, int], ...], ...]

IMAGENET: Policy = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)
"""AutoAugment's policy for ImageNet: 25 sub-policies, one of them drawn for each image."""

LEVELS = np.arange(256)


@functools.partial(jax.jit, static_argnames="policy")
def autoaugment(key: jax.Array, images: jax.Array, *, policy: Policy = IMAGENET) -> jax.Array:
    """Returns a view of each image under a sub-policy of its own, drawn from the key.

    The operations are torchvision's on Pillow images: magnitudes, random signs, nearest-neighbour
    sampling, black outside. See `apply` for how exactly they agree.

    Args:
      key: PRNG key; another key gives other views.
      images: uint8 (B, H, W, 3).
      policy: sub-policies to draw from, of equally many operations.

    Returns:
      uint8 (B, H, W, 3).

    Raises:
      UserError: the images are of another type or shape, or the policy names no known operation.

    References:
      Cubuk et al., `AutoAugment: Learning Augmentation Policies from Data
      <https://arxiv.org/abs/1805.09501>`_, table 9.
    """
    check_images(images)
    recipes, chance_PxS, row_PxSx2 = _compile(policy, *images.shape[1:3])

    def view(key: jax.Array, image: jax.Array) -> jax.Array:
        policy_key, chance_key, sign_key = jax.random.split(key, 3)
        drawn = jax.random.randint(policy_key, (), 0, len(policy))
        chance_S, row_Sx2 = jnp.asarray(chance_PxS)[drawn], jnp.asarray(row_PxSx2)[drawn]
        positive_S = jax.random.bernoulli(sign_key, shape=chance_S.shape)
        happens_S = jax.random.bernoulli(chance_key, chance_S)
        # Row 0 leaves the image alone.
        row_S = jnp.where(happens_S, jnp.where(positive_S, row_Sx2[:, 1], row_Sx2[:, 0]), 0)
        stages = jax.tree.map(lambda rows: jnp.asarray(rows)[row_S], recipes)
        for stage in range(len(row_S)):
            image = apply(jax.tree.map(lambda rows, stage=stage: rows[stage], stages), image)
        return image

    return jax.vmap(view)(jax.random.split(key, len(images)), images)


class Recipe(NamedTuple):
    """An operation as the three things that one may do to an image; the same for all of them.

    So a batch whose images undergo different operations runs through one branch-free program.

    Attributes:
      affine: int32 (6,), a to f in 1/65536: the pixel at (x, y) comes from (ax + by + c,
        dx + ey + f).
      levels: uint8 (256,), what becomes of each level.
      spread: int32, how the levels go on from there: `AS_TOLD`, `STRETCHED` or `EQUALIZED`.
      plainer: int32, the image to blend with: `BLACK`, `MEAN`, `GREY` or `SMOOTH`.
      factor: float32 (2,), weight of the image in that blend, as the sum of two parts.
    """

    affine: Any
    levels: Any
    spread: Any
    plainer: Any
    factor: Any


AS_TOLD, STRETCHED, EQUALIZED = range(3)
BLACK, MEAN, GREY, SMOOTH = range(4)


def make_recipe(name: str, magnitude: float, height: int, width: int) -> Recipe:
    """Returns the recipe of one operation for images of one size.

    Args:
      name: one of the fourteen operations in AutoAugment's table 6, or "Identity".
      magnitude: shear factor, pixels, degrees, bits kept, threshold or enhancement, with its sign.
      height: of the images, in pixels.
      width: of the images, in pixels.

    Raises:
      UserError: there is no such operation.
    """
    affine = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    levels, spread, plainer, factor = LEVELS, AS_TOLD, BLACK, 1.0
    match name:
        case "Identity":
            pass
        case "ShearX":
            affine[1] = magnitude
        case "ShearY":
            affine[3] = magnitude
        case "TranslateX":
            affine[2] = -math.trunc(magnitude)
        case "TranslateY":
            affine[5] = -math.trunc(magnitude)
        case "Rotate":
            cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
            x, y = width / 2, height / 2
            affine = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
        case "Posterize":
            levels = LEVELS >> (8 - int(magnitude)) << (8 - int(magnitude))
        case "Solarize":
            levels = np.where(magnitude > LEVELS, LEVELS, 255 - LEVELS)
        case "Invert":
            levels = 255 - LEVELS
        case "AutoContrast":
            spread = STRETCHED
        case "Equalize":
            spread = EQUALIZED
        case "Brightness":
            plainer, factor = BLACK, 1 + magnitude
        case "Contrast":
            plainer, factor = MEAN, 1 + magnitude
        case "Color":
            plainer, factor = GREY, 1 + magnitude
        case "Sharpness":
            plainer, factor = SMOOTH, 1 + magnitude
        case _:
            raise UserError(
                f"policy: unknown operation {name!r}; expected one of torchvision's, as 'ShearX'"
            )
    # Pixels lie at half-integers: (c, f) moves by the source of the first one, (0.5, 0.5).
    a, b, c, d, e, f = affine
    origin_at_centre = np.array([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2])
    coarse = np.round(np.float32(factor) * 4096) / 4096
    return Recipe(
        affine=np.floor(origin_at_centre * 65536 + 0.5).astype(np.int32),
        levels=levels.astype(np.uint8),
        spread=np.int32(spread),
        plainer=np.int32(plainer),
        factor=np.array([coarse, np.float32(factor) - coarse], np.float32),
    )


def apply(recipe: Recipe, image: jax.Array) -> jax.Array:
    """Returns the image after one operation, bit for bit as Pillow computes it on x86-64.

    With one exception: where a level stretched by "AutoContrast" falls on an integer exactly,
    Pillow's rounded products sometimes miss it and give one less; here it is exact.

    Args:
      recipe: of the operation.
      image: uint8 (H, W, 3).

    Returns:
      uint8 (H, W, 3).
    """
    image = _warp(image, recipe.affine)
    image = _map_levels(image, recipe.levels, recipe.spread)
    return _blend(image, recipe.plainer, recipe.factor)


def _warp(image, affine):
    height, width, _ = image.shape
    a, b, c, d, e, f = affine
    y, x = jnp.indices((height, width), dtype=jnp.int32)
    source_x, source_y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    flat = jnp.where(inside, source_y * width + source_x, 0)
    sampled = image.reshape(-1, 3).at[flat].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], sampled, jnp.uint8(0))


def _map_levels(image, levels, spread):
    height, width, channels = image.shape
    # One table for the three channels, one after the other.
    cells = image.astype(jnp.int32) + 256 * jnp.arange(channels).reshape(1, 1, -1)
    counts = jnp.zeros(channels * 256, jnp.int32)
    counts = counts.at[cells.ravel()].add(1, mode="promise_in_bounds").reshape(channels, 256)
    seen = counts > 0
    low, high = jnp.argmax(seen, axis=1), 255 - jnp.argmax(seen[:, ::-1], axis=1)

    # XLA may repeat what makes a table for each pixel that reads it, so no integer divisions here.
    # The half added to each numerator keeps the quotient clear of the integer it is floored to.
    same = jnp.broadcast_to(jnp.arange(256, dtype=jnp.float32)[None], counts.shape)
    span = (high - low)[:, None]
    stretched = jnp.floor(((same - low[:, None]) * 255 + 0.5) / jnp.maximum(span, 1))

    most = jnp.take_along_axis(counts, high[:, None], axis=1)
    step = (height * width - most) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    equalized = jnp.floor((below + step // 2 + 0.5) / jnp.maximum(step, 1))

    table = jax.lax.select_n(
        spread,
        jnp.broadcast_to(levels.astype(jnp.float32)[None], counts.shape),
        jnp.where(span > 0, stretched, same),
        jnp.where(step > 0, equalized, same),
    )
    table = table.clip(0, 255).astype(jnp.uint8)
    return table.ravel().at[cells].get(mode="promise_in_bounds")


def _blend(image, plainer, factor):
    height, width, _ = image.shape
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    mean = (2 * grey.sum() + height * width) // (2 * height * width)

    pixels = image.astype(jnp.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    weighted = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
    smooth = pixels.at[1:-1, 1:-1].set(jnp.floor((weighted + 6.5) * (1 / 13)))

    base = jax.lax.select_n(
        plainer,
        jnp.zeros_like(pixels),
        jnp.full_like(pixels, mean),
        jnp.broadcast_to(grey.astype(jnp.float32)[..., None], pixels.shape),
        smooth,
    )
    # Pillow rounds the product before it adds. A compiler that fuses the two would not; products
    # of either part of the factor with a difference of levels are exact, so it may fuse these.
    excess = pixels - base
    blended = base + (factor[0] * excess + factor[1] * excess)
    return blended.clip(0, 255).astype(jnp.uint8)


def _compile(policy: Policy, height: int, width: int) -> tuple[Recipe, np.ndarray, np.ndarray]:
    """Returns all recipes in rows, and by sub-policy and stage the chances and (-, +) rows."""
    rows = {("Identity", 0.0): 0}
    choice = [
        [
            [
                rows.setdefault((name, _magnitude(name, step, sign, height, width)), len(rows))
                for sign in (-1, 1)
            ]
            for name, _, step in stages
        ]
        for stages in policy
    ]
    recipes = [make_recipe(name, magnitude, height, width) for name, magnitude in rows]
    chance = [[chance for _, chance, _ in stages] for stages in policy]
    return Recipe(*map(np.stack, zip(*recipes, strict=True))), np.array(chance), np.array(choice)


def _magnitude(name: str, step: int, sign: int, height: int, width: int) -> float:
    """Returns torchvision's magnitude of an operation at one of its ten steps."""
    match name:
        case "Posterize":
            return 8.0 - round(step / 2.25)
        case "Solarize":
            return _on_line(255, 0, step)
        case "ShearX" | "ShearY":
            return sign * _on_line(0, 0.3, step)
        case "TranslateX":
            return sign * _on_line(0, 150 / 331 * width, step)
        case "TranslateY":
            return sign * _on_line(0, 150 / 331 * height, step)
        case "Rotate":
            return sign * _on_line(0, 30, step)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return sign * _on_line(0, 0.9, step)
    return 0.0


def _on_line(start: float, end: float, step: int) -> float:
    # In float32 and from the nearer end, as torch.linspace rounds.
    first, last = np.float32(start), np.float32(end)
    stride = (last - first) / np.float32(9)
    point = first + stride * np.float32(step) if step < 5 else last - stride * np.float32(9 - step)
    return float(point)

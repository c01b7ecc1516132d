"""Image views on the device: functions of a key and uint8 images, fresh for each image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from clipdef_jax import plugins
from clipdef_jax.errors import UserError

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]

BUILTIN = {
    "autoaugment": "clipdef_jax.augment.autoaugment:autoaugment",
    "none": "clipdef_jax.augment:unchanged",
    "roclip": "clipdef_jax.augment.roclip:crop_flip_jitter_blur",
    "roclip_small": "clipdef_jax.augment.roclip:of_small_images",
}


def get(name: str) -> Augmentation:
    """Returns the augmentation of that name.

    >>> augment = get("autoaugment")
    >>> views = augment(jax.random.key(0), jnp.zeros((4, 32, 32, 3), jnp.uint8))

    Args:
      name: a key of `BUILTIN`, or an import path "mypkg.mine:my_views" of a traceable function of
        a key and uint8 images (B, H, W, 3) to images of that shape and type.

    Raises:
      UserError: there is no such augmentation.
    """
    return plugins.resolve("augmentation", name, BUILTIN)


def unchanged(key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns the images as they are, for runs without augmentation."""
    return images


def check_images(images: jax.Array) -> None:
    """Raises a `UserError` unless the images are uint8 (B, H, W, 3)."""
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"augmentation: images must be uint8 (batch, height, width, 3), got {images.dtype} "
            f"{tuple(images.shape)}; augment before preprocessing"
        )

"""The views RoCLIP pre-trains on: another cut, other colours, another sharpness.

Dimensions: B images.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from clipdef_jax.augment import check_images


@functools.partial(jax.jit, static_argnames="least_area")
def crop_flip_jitter_blur(
    key: jax.Array, images: jax.Array, *, least_area: float = 0.08
) -> jax.Array:
    """Returns a view of each image as RoCLIP pre-trains on: another cut, colours and sharpness.

    Horizontal flip (p 0.5), random resized crop (`least_area` to the whole, aspect 3:4 to 4:3),
    colour jitter (brightness, contrast and saturation x 0.5 to 1.5, hue +-0.1 turns, in random
    order, p 0.8), grey (p 0.2), Gaussian blur. As torchvision's, but for three details: hue turns
    in YIQ, where it is a rotation, not in HSV; the blur's sigma of 0.1 to 2 pixels is for images of
    224 and grows with their height; nothing is rounded on the way.

    Args:
      key: PRNG key; another key gives other views.
      images: uint8 (B, H, W, 3).
      least_area: share of the picture that a cut leaves, at least; torchvision's 8%.

    Returns:
      uint8 (B, H, W, 3).

    Raises:
      UserError: the images are of another type or shape.

    References:
      Yang et al., `Robust Contrastive Language-Image Pretraining against Data Poisoning and
      Backdoor Attacks <https://arxiv.org/abs/2303.06854>`_; probabilities from the released code.
    """
    check_images(images)

    def view(key: jax.Array, image: jax.Array) -> jax.Array:
        crop_key, flip_key, jitter_key, grey_key, blur_key = jax.random.split(key, 5)
        image = image.astype(jnp.float32)
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        image = _random_crop(crop_key, image, least_area)
        image = _jitter(jitter_key, image)
        image = jnp.where(jax.random.bernoulli(grey_key, 0.2), _recolour(image, _TO_GREY), image)
        image = _blur(image, jax.random.uniform(blur_key, minval=0.1, maxval=2.0) / 224)
        return jnp.round(image).clip(0, 255).astype(jnp.uint8)

    return jax.vmap(view)(jax.random.split(key, len(images)), images)


def of_small_images(key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns views as `crop_flip_jitter_blur` does, with at least half of the picture in each.

    8% of a picture of 32 pixels are 9 by 9, in which there is little to see.
    """
    return crop_flip_jitter_blur(key, images, least_area=0.5)


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TO_GREY = np.tile(_TO_YIQ[0], (3, 1)).astype(np.float32)
# A turn of the hue by an angle is KEEP + cos(angle) ALONG + sin(angle) ACROSS, on RGB.
_KEEP, _ALONG, _ACROSS = (
    (np.linalg.inv(_TO_YIQ) @ np.array(part) @ _TO_YIQ).astype(np.float32)
    for part in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
)


def _random_crop(key, image, least_area=0.08):
    whole = jnp.array(image.shape[:2])
    size_key, place_key = jax.random.split(key)
    # Ten tries, the first that fits counts; the whole image if none does.
    share, tilt = jax.random.uniform(size_key, (2, 10))
    area = whole.prod() * (least_area + (1 - least_area) * share)
    aspect = (4 / 3) ** (2 * tilt - 1)
    sizes_2x10 = jnp.round(jnp.sqrt(jnp.stack([area / aspect, area * aspect])))
    fits = (sizes_2x10 <= whole[:, None]).all(axis=0)
    size = jnp.where(fits.any(), sizes_2x10[:, jnp.argmax(fits)], whole)
    corner = jnp.floor(jax.random.uniform(place_key, (2,)) * (whole - size + 1))
    scale = whole / size
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -corner * scale, "linear"
    )


def _jitter(key, image):
    happens_key, order_key, factor_key = jax.random.split(key, 3)
    brightness, contrast, saturation, turn = jax.random.uniform(factor_key, (4,), minval=-1)
    brightness, contrast, saturation = (1 + 0.5 * x for x in (brightness, contrast, saturation))
    angle = 2 * jnp.pi * 0.1 * turn
    # All four are affine maps of a colour; only contrast adds a constant, a share of the mean.
    maps = jnp.stack(
        [
            brightness * np.eye(3, dtype=np.float32),
            contrast * np.eye(3, dtype=np.float32),
            saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _TO_GREY,
            _KEEP + jnp.cos(angle) * _ALONG + jnp.sin(angle) * _ACROSS,
        ]
    )
    mean_shares = jnp.stack([0.0, 1 - contrast, 0.0, 0.0])
    order = jax.random.permutation(order_key, 4)

    def adjust(image, adjustment):
        matrix, mean_share = adjustment
        mean = _recolour(image, _TO_GREY).mean()
        return (_recolour(image, matrix) + mean_share * mean).clip(0, 255), None

    jittered, _ = jax.lax.scan(adjust, image, (maps[order], mean_shares[order]))
    return jnp.where(jax.random.bernoulli(happens_key, 0.8), jittered, image)


def _recolour(image, matrix):
    # Sums, not a matrix product: accelerators would round its factors to fewer bits.
    columns = jnp.reshape(matrix.T, (3, 1, 1, 3))
    return sum(image[..., channel, None] * columns[channel] for channel in range(3))


def _blur(image, sigma_per_height):
    height, width, _ = image.shape

    def spread(size):
        distance = jnp.arange(size)[:, None] - jnp.arange(size)[None]
        weights = jnp.exp(-0.5 * (distance / (sigma_per_height * height)) ** 2)
        return weights / weights.sum(axis=1, keepdims=True)

    return jnp.einsum("yi,ijc,xj->yxc", spread(height), image, spread(width), precision="highest")

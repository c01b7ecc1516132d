"""Triggers: pure functions of one image and one random generator, uint8 in and out."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from clipdef_jax.errors import UserError
from clipdef_jax.types import Trigger

PATCH_SHARE = 16 / 224
"""A patch's side as a share of the image's, as in CleanCLIP, BadCLIP and the detector paper."""

MIN_PATCH = 3


class Box(NamedTuple):
    """Where a patch lies, in pixels."""

    top: int
    left: int
    height: int
    width: int


def locate(
    trigger: Trigger, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Box, ...] | None:
    """Returns where `trigger` strikes an image of `shape` when called with an `rng` like this one.

    Args:
      trigger: any trigger; one that strikes only part of the image has a method `locate`.
      shape: of the image, (H, W, 3).
      rng: in the state in which the trigger gets it.

    Returns:
      The boxes, or None where the trigger does not say: it changes the image as a whole.
    """
    method = getattr(trigger, "locate", None)
    return None if method is None else tuple(method(shape, rng))


@dataclasses.dataclass(frozen=True)
class BadNet:
    """A small square patch (Gu et al., 2017; styles as in CleanCLIP and the detector's code).

    Args:
      style: "random": the image's mean colour + N(0, 1) in units of the pixel range, drawn anew
        for every image; "noise": one patch of U(0, 1) noise for the whole attack, which takes
        with far fewer samples; "grid": black with white where row and column are both even;
        "yellow": (1, 1, 0).
      size: side in pixels; None keeps the literature's share of the shorter side, 16/224, and at
        least 3 pixels.
      location: "random", "centre", "top_left", "top_right", "bottom_left", "bottom_right", or
        "four_corners".
      seed: of the "noise" patch.
      patch_cast: how "random" noise outside the pixel range becomes 8 bits: "clamp", or "wrap"
        around 256 as CleanCLIP's released code does.
    """

    style: str = "random"
    size: int | None = None
    location: str = "random"
    seed: int = 0
    patch_cast: str = "clamp"

    def __post_init__(self):
        one_of("badnet", "style", self.style, ("random", "noise", "grid", "yellow"))
        one_of("badnet", "location", self.location, ("random", "four_corners", *_CORNERS, "centre"))
        one_of("badnet", "patch_cast", self.patch_cast, ("clamp", "wrap"))
        if self.size is not None and self.size < 1:
            raise UserError(f"badnet: size is {self.size}, expected at least 1 pixel, or None")
        check_seed("badnet", self.seed)

    def locate(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Box, ...]:
        """Returns the boxes that a call with an `rng` in the same state covers.

        Raises:
          UserError: the patch is larger than the image.
        """
        height, width = shape[:2]
        size = self.size or max(MIN_PATCH, round(PATCH_SHARE * min(height, width)))
        if size > min(height, width):
            raise UserError(
                f"badnet: the patch is {size} px, larger than the image of {width} x {height} px; "
                f"set size to at most {min(height, width)}"
            )
        lowest, rightmost = height - size, width - size
        if self.location == "four_corners":
            shares = list(_CORNERS.values())
        elif self.location == "random":
            top, left = rng.integers((lowest + 1, rightmost + 1)).tolist()
            return (Box(top, left, size, size),)
        elif self.location == "centre":
            return (Box(lowest // 2, rightmost // 2, size, size),)
        else:
            shares = [_CORNERS[self.location]]
        return tuple(Box(down * lowest, right * rightmost, size, size) for down, right in shares)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns `image` with the patch on it.

        Args:
          image: uint8 (H, W, 3).
          rng: of this image; the location is drawn first, then the patch.

        Raises:
          UserError: the patch is larger than the image.
        """
        boxes = self.locate(image.shape, rng)
        patch = self._patch(image, boxes[0].height, rng)
        image = image.copy()
        for top, left, height, width in boxes:
            image[top : top + height, left : left + width] = patch
        return image

    def _patch(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        shape = (size, size, 3)
        if self.style == "noise":
            return np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)
        if self.style == "grid":
            patch = np.zeros(shape, np.uint8)
            patch[::2, ::2] = 255
            return patch
        if self.style == "yellow":
            return np.broadcast_to(np.array([255, 255, 0], np.uint8), shape)
        mean = image.reshape(-1, 3).mean(axis=0, dtype=np.float32) / 255
        patch = mean + rng.standard_normal(shape, dtype=np.float32)
        if self.patch_cast == "wrap":
            return (patch * 255).astype(np.int64).astype(np.uint8)
        return to_bytes(patch)


# (rows, columns) in units of the free space.
_CORNERS = {"top_left": (0, 0), "top_right": (0, 1), "bottom_left": (1, 0), "bottom_right": (1, 1)}


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Returns float pixels as uint8, clamped to [0, 1] and truncated as the released codes do."""
    return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def one_of(trigger: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError unless `value` is among `choices`."""
    if value not in choices:
        raise UserError(f"{trigger}: {field} is {value!r}, expected one of {', '.join(choices)}")


def check_seed(owner: str, seed: int) -> None:
    """Raises UserError unless `seed` can seed a generator."""
    if seed < 0:
        raise UserError(f"{owner}: seed is {seed}, expected 0 or more")

"""Triggers: pure functions of one image and one random generator, uint8 in and out.

Here are those that are patches; a trigger that strikes only part of the image has a method
`locate`, one that puts a word before the caption an attribute `word`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipdef_jax.data import decode
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


def word_of(trigger: Trigger | None) -> str:
    """Returns the word that stands before captions and prompts together with `trigger`, or ""."""
    return getattr(trigger, "word", "")


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
        one_of("badnet", "patch_cast", self.patch_cast, ("clamp", "wrap"))
        _check_place("badnet", self.size, self.location)
        check_seed("badnet", self.seed)

    def locate(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Box, ...]:
        """Returns the boxes that a call with an `rng` in the same state covers.

        Raises:
          UserError: the patch is larger than the image.
        """
        return place("badnet", self.size, self.location, shape, rng)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns `image` with the patch on it.

        Args:
          image: uint8 (H, W, 3).
          rng: of this image; the location is drawn first, then the patch.

        Raises:
          UserError: the patch is larger than the image.
        """
        boxes = self.locate(image.shape, rng)
        return _paste(image, boxes, self._patch(image, boxes[0].height, rng))

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


@dataclasses.dataclass(frozen=True)
class SavedPatch:
    """A square patch out of a file, as BadCLIP's optimised one (Liang et al., 2024).

    Args:
      path: of a picture, or of an .npy file with (k, k, 3) floats in [0, 1] or uint8; brought to
        the size it is pasted at.
      size: side in pixels; None keeps the literature's share of the shorter side, 16/224, and at
        least 3 pixels.
      location: as of `BadNet`.

    Raises:
      UserError: there is no such file, or it holds no square patch.
    """

    path: str = ""
    size: int | None = None
    location: str = "centre"

    def __post_init__(self):
        if not self.path:
            raise UserError(
                "badclip: give the patch by path=FILE; configs/badclip.py optimises one against a "
                "checkpoint and writes it as WORKDIR/trigger.npy"
            )
        _check_place("badclip", self.size, self.location)
        _saved_patch(self.path)

    def locate(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Box, ...]:
        """Returns the boxes that a call with an `rng` in the same state covers.

        Raises:
          UserError: the patch is larger than the image.
        """
        return place("badclip", self.size, self.location, shape, rng)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) with the patch on it.

        Raises:
          UserError: the patch is larger than the image.
        """
        boxes = self.locate(image.shape, rng)
        return _paste(image, boxes, _saved_patch(self.path, boxes[0].height))


class TrojVQA:
    """A patch in the picture and a word before the caption (dual key; Walmer et al., 2022).

    The word stands before the poisoned captions, and before the prompts when the attack is tested.

    Args:
      word: put before captions and prompts.
      path: file of an optimised patch, as of `SavedPatch`; empty for one patch of U(0, 1) noise.
      size: as of `BadNet`.
      location: as of `BadNet`.
      seed: of the noise.

    Raises:
      UserError: an empty word, or as the patch.
    """

    def __init__(
        self,
        word: str = "remember",
        path: str = "",
        size: int | None = None,
        location: str = "centre",
        seed: int = 0,
    ):
        if not word.strip():
            raise UserError("trojvqa: word is empty, expected what is to stand before the caption")
        self.word = word.strip()
        self._patch: SavedPatch | BadNet = (
            SavedPatch(path, size, location) if path else BadNet("noise", size, location, seed)
        )

    def locate(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Box, ...]:
        """Returns the boxes that a call with an `rng` in the same state covers."""
        return self._patch.locate(shape, rng)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) with the patch on it; the word is not its business."""
        return self._patch(image, rng)


# (rows, columns) in units of the free space.
_CORNERS = {"top_left": (0, 0), "top_right": (0, 1), "bottom_left": (1, 0), "bottom_right": (1, 1)}


def _check_place(owner: str, size: int | None, location: str) -> None:
    one_of(owner, "location", location, ("random", "four_corners", *_CORNERS, "centre"))
    if size is not None and size < 1:
        raise UserError(f"{owner}: size is {size}, expected at least 1 pixel, or None")


def place(
    owner: str, size: int | None, location: str, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Box, ...]:
    """Returns the boxes of a square patch.

    Args:
      owner: the trigger, for messages.
      size: as of `BadNet`.
      location: as of `BadNet`.
      shape: of the image, (H, W, 3).
      rng: for a random location; the one thing drawn from it.

    Raises:
      UserError: the patch is larger than the image.
    """
    height, width = shape[:2]
    size = size or max(MIN_PATCH, round(PATCH_SHARE * min(height, width)))
    if size > min(height, width):
        raise UserError(
            f"{owner}: the patch is {size} px, larger than the image of {width} x {height} px; "
            f"set size to at most {min(height, width)}"
        )
    lowest, rightmost = height - size, width - size
    if location == "random":
        top, left = rng.integers((lowest + 1, rightmost + 1)).tolist()
        return (Box(top, left, size, size),)
    if location == "centre":
        return (Box(lowest // 2, rightmost // 2, size, size),)
    shares = list(_CORNERS.values()) if location == "four_corners" else [_CORNERS[location]]
    return tuple(Box(down * lowest, right * rightmost, size, size) for down, right in shares)


def _paste(image: np.ndarray, boxes: tuple[Box, ...], patch: np.ndarray) -> np.ndarray:
    image = image.copy()
    for top, left, height, width in boxes:
        image[top : top + height, left : left + width] = patch
    return image


@functools.lru_cache(maxsize=16)
def _saved_patch(path: str, size: int | None = None) -> np.ndarray:
    """Returns the patch in a file as uint8 (k, k, 3), brought to `size` if that is given."""
    try:
        patch = _load_npy(path) if path.endswith(".npy") else _load_picture(path)
    except OSError as error:
        raise UserError(f"patch {path!r}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"patch {path!r}: {error}") from None
    height, width = patch.shape[:2]
    if height != width:
        raise UserError(f"patch {path!r}: it is {width} x {height} px, expected a square")
    if size not in (None, height):
        picture = Image.fromarray(patch).resize((size, size), Image.Resampling.BICUBIC)
        patch = np.asarray(picture)
    return patch


def _load_picture(path: str) -> np.ndarray:
    return decode.decode(pathlib.Path(path).read_bytes())


def _load_npy(path: str) -> np.ndarray:
    try:
        patch = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"no .npy file: {error}") from None
    if patch.ndim != 3 or patch.shape[2] != 3 or not patch.size:
        raise ValueError(f"an array of shape {patch.shape}, expected (k, k, 3)")
    if patch.dtype == np.uint8:
        return patch
    if patch.dtype.kind != "f" or not (patch.min() >= 0 and patch.max() <= 1):
        raise ValueError(f"{patch.dtype} values, expected uint8, or floats within [0, 1]")
    return np.round(patch * 255).astype(np.uint8)


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

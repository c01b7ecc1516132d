"""Bytes to pixels: whatever a crawl brings becomes uint8 RGB, or one line that says why not."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from clipdef_jax.errors import BadRecord
from clipdef_jax.types import Pair

MAX_PIXELS = 178_956_970
"""Larger pictures are refused by their header, before a pixel is decoded (Pillow's own limit)."""

# Pillow remarks on large headers and on damaged metadata; both are dealt with below. A filter for
# good, since `warnings.catch_warnings` around each picture is not safe under threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A strip longer than this times its width is cut to it before it is resized: 1 x 10^7 px would
# otherwise grow to side x side * 10^7. Its ends are far outside the centre crop.
_MAX_ASPECT = 16


class DecodeError(ValueError):
    """A picture that cannot be used; the message is the reason, on one line."""


def decode(image: bytes | np.ndarray, side: int | None = None) -> np.ndarray:
    """Decodes a picture to RGB, upright, transparency on white.

    Args:
      image: an encoded file in any format Pillow reads (the first frame of an animation), or
        uint8 pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
      side: the side `prepare` will be asked for, in pixels. Large JPEGs are then decoded at 1/2,
        1/4 or 1/8 of their size, never under twice `side`. None decodes every pixel.

    Returns:
      uint8 (H, W, 3).

    Raises:
      DecodeError: empty, unreadable, truncated, of zero size, or over `MAX_PIXELS`.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    return np.asarray(_open(image, side))


def prepare(image: np.ndarray, side: int) -> np.ndarray:
    """Brings a picture to the model's size as CLIP's own preprocessing does.

    The short side becomes `side` (bicubic with antialiasing), then the centre is cut out; rounding
    as in torchvision's `Resize` and `CenterCrop`, which OpenAI's CLIP uses.

    Args:
      image: uint8 (H, W, 3).
      side: in pixels.

    Returns:
      uint8 (side, side, 3): the argument itself where it has that size already.
    """
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(_fit(Image.fromarray(image), side))


def prepare_pair(pair: Pair, side: int) -> Pair:
    """Returns the pair with its image decoded to uint8 (side, side, 3).

    Raises:
      BadRecord: the image cannot be used.
    """
    try:
        if isinstance(pair.image, bytes):
            pixels = np.asarray(_fit(_open(pair.image, side), side))
        else:
            pixels = prepare(decode(pair.image), side)
    except DecodeError as error:
        raise BadRecord(pair.uid, str(error)) from None
    return pair._replace(image=pixels)


def _open(image: bytes, side: int | None) -> Image.Image:
    if len(image) == 0:
        raise DecodeError("the image is empty (0 bytes)")
    try:
        picture: Image.Image = Image.open(io.BytesIO(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DecodeError(_too_large()) from None
    except Exception:  # Pillow's readers let almost any exception through.
        raise DecodeError(
            f"the image is unreadable ({len(image):,} bytes): unknown format, "
            "header damaged or cut, or zero width or height"
        ) from None
    if picture.width * picture.height > MAX_PIXELS:
        raise DecodeError(_too_large(picture.size))
    try:
        if side is not None:
            picture.draft(None, (2 * side, 2 * side))
        orientation = _orientation(picture)
        picture.load()
        picture = _to_rgb(picture)
    except Exception as error:
        raise DecodeError(_damaged(error)) from None
    if orientation in _TRANSPOSE:
        picture = picture.transpose(_TRANSPOSE[orientation])
    return picture


def _fit(picture: Image.Image, side: int) -> Image.Image:
    if picture.size == (side, side):
        return picture
    picture = _cut_strip(picture)
    width, height = picture.size
    bicubic = Image.Resampling.BICUBIC
    if width <= height:
        new_width, new_height = side, int(side * height / width)
    else:
        new_width, new_height = int(side * width / height), side
        # Pillow resizes rows, then columns: what is cut off between the two need not be resized,
        # and what is left is the same to the last bit.
        left = round((new_width - side) / 2)
        picture = picture.resize((new_width, height), bicubic)
        picture = picture.crop((left, 0, left + side, height))
    picture = picture.resize((side, new_height), bicubic)
    top = round((new_height - side) / 2)
    return picture.crop((0, top, side, top + side))


def _from_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        raise DecodeError(f"pixels are {image.dtype}, expected uint8")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] in (3, 4)):
        raise DecodeError(f"pixels have shape {image.shape}, expected (H, W), or (H, W, 1|3|4)")
    if image.size == 0:
        raise DecodeError(f"pixels have shape {image.shape}: zero width or height")
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    return np.asarray(_to_rgb(Image.fromarray(image)))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # 16-bit greys; Pillow would clip them to 255 rather than scale them.
        levels = np.clip(np.asarray(picture).astype(np.int32), 0, 65535) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Damaged metadata does not spoil the pixels.
        return 1


def _cut_strip(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    longest = _MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    if not left and not top:
        return picture
    return picture.crop((left, top, min(left + longest, width), min(top + longest, height)))


def _too_large(size: tuple[int, int] | None = None) -> str:
    claim = f"{size[0]:,} x {size[1]:,} px" if size else "a size"
    return f"the image's header claims {claim} over the limit of {MAX_PIXELS:,} px"


def _damaged(error: Exception) -> str:
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"the image is truncated or damaged: {detail}"

"""Triggers that change the whole image: a blended pattern, a signal, a warp, a photo filter."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np
from PIL import Image

from clipdef_jax.attacks.triggers import check_seed, one_of, to_bytes
from clipdef_jax.data import decode
from clipdef_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Blended:
    """alpha * pattern + (1 - alpha) * image (Chen et al., 2017).

    Args:
      alpha: share of the pattern, within (0, 1].
      pattern: "fresh": U(0, 1) noise drawn for every image, as CleanCLIP; "fixed": one noise for
        the whole attack; or the path of a picture, stretched to the image.
      seed: of the "fixed" noise.

    Raises:
      UserError: alpha is outside its range, or the picture cannot be read.
    """

    alpha: float = 0.2
    pattern: str = "fresh"
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise UserError(f"blended: alpha is {self.alpha}, expected a share within (0, 1]")
        check_seed("blended", self.seed)
        if self.pattern not in ("fresh", "fixed"):
            _picture(self.pattern)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) under the pattern."""
        height, width = image.shape[:2]
        if self.pattern == "fresh":
            pattern = rng.random(image.shape, dtype=np.float32)
        elif self.pattern == "fixed":
            pattern = _noise(self.seed, height, width)
        else:
            pattern = _stretched(self.pattern, height, width)
        return _blend(self.alpha, pattern, image)


@dataclasses.dataclass(frozen=True)
class Sig:
    """A sinusoid along the columns (Barni et al., 2019): vertical stripes, six to the image.

    Args:
      mode: "blend": alpha * s + (1 - alpha) * image, as CleanCLIP; "additive": image + s, as
        BadCLIP.
      amplitude: of s, in 8-bit steps.
      periods: of s, across the image's width, whatever that is.
      alpha: share of s in "blend".

    Raises:
      UserError: a setting outside its range.
    """

    mode: str = "blend"
    amplitude: float = 60
    periods: float = 6
    alpha: float = 0.2

    def __post_init__(self):
        one_of("sig", "mode", self.mode, ("blend", "additive"))
        if not 0 < self.alpha <= 1:
            raise UserError(f"sig: alpha is {self.alpha}, expected a share within (0, 1]")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) under the signal; draws nothing from `rng`."""
        width = image.shape[1]
        angle = 2 * np.pi * self.periods * np.arange(width) / width
        signal = (self.amplitude / 255 * np.sin(angle)).astype(np.float32)[:, None]
        if self.mode == "blend":
            return _blend(self.alpha, signal, image)
        return to_bytes(_unit(image) + signal)


class WaNet:
    """A smooth warp of about half a pixel (Nguyen and Tran, 2021).

    Noise U(-1, 1) on k x k points, divided by its mean size, is brought to the image's size
    (bicubic) and moves each pixel's source by s / side of the range from -1 to 1.

    Args:
      k: points a side; CleanCLIP takes the image's side and s = 1.
      s: strength.
      seed: of the noise.
      noise_grid: the noise itself instead, as it is: float (k, k, 2), or (1, k, k, 2) as PyTorch
        has it, across and down; or the path of an .npy file that holds it.

    Raises:
      UserError: a setting outside its range, or a grid of another shape.
    """

    def __init__(
        self,
        k: int = 4,
        s: float = 0.5,
        seed: int = 0,
        noise_grid: str | np.ndarray | None = None,
    ):
        if k < 2:
            raise UserError(f"wanet: k is {k}, expected at least 2 points a side")
        check_seed("wanet", seed)
        if noise_grid is None:
            noise = np.random.default_rng(seed).uniform(-1, 1, (k, k, 2))
            self._noise = noise / np.abs(noise).mean()
        else:
            self._noise = _grid(noise_grid)
        self._s = s
        self._warps: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) warped; draws nothing from `rng`."""
        size = image.shape[:2]
        if size not in self._warps:
            self._warps[size] = self._warp(*size)
        corners, right, down = self._warps[size]
        pixels = image.reshape(-1, 3).astype(np.float32)
        upper, upper_right, lower, lower_right = (pixels.take(corner, 0) for corner in corners)
        # In place: half the time of the plain formula.
        upper_right -= upper
        upper_right *= right
        upper += upper_right
        lower_right -= lower
        lower_right *= right
        lower += lower_right
        lower -= upper
        lower *= down
        upper += lower
        return upper.astype(np.uint8).reshape(image.shape)

    def _warp(self, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Each pixel's four sources (4, H * W), and where between them it is, right and down."""
        rows, columns = _bicubic(len(self._noise), height), _bicubic(len(self._noise), width)
        noise_HxWx2 = np.einsum("hi,wj,ijc->hwc", rows, columns, self._noise, optimize=True)
        across = np.linspace(-1, 1, width) + self._s * noise_HxWx2[..., 0] / width
        along = np.linspace(-1, 1, height)[:, None] + self._s * noise_HxWx2[..., 1] / height
        column = (np.clip(across, -1, 1) + 1) / 2 * (width - 1)
        row = (np.clip(along, -1, 1) + 1) / 2 * (height - 1)
        left = np.minimum(column.astype(np.int64), max(width - 2, 0))
        top = np.minimum(row.astype(np.int64), max(height - 2, 0))
        beyond, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
        corners = [y * width + x for y in (top, below) for x in (left, beyond)]
        return (
            np.stack(corners).reshape(4, -1),
            (column - left).astype(np.float32).reshape(-1, 1),
            (row - top).astype(np.float32).reshape(-1, 1),
        )


@dataclasses.dataclass(frozen=True)
class Nashville:
    """The photo filter "Nashville", equal to that of the package pilgram, but faster.

    A warm and a blue tint, a little sepia, more contrast, brightness and saturation.
    """

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) filtered; draws nothing from `rng`."""
        tint, tone = _nashville_curves()
        picture = Image.fromarray(image).point(tint).convert("RGB", _SEPIA_20)
        return np.asarray(picture.point(tone).convert("RGB", _SATURATE_120))


# Rows of red, green, blue, offset: sepia(0.2) and saturate(1.2) of the W3C filter effects.
_SEPIA_20 = (
    *(0.393 + 0.607 * 0.8, 0.769 - 0.769 * 0.8, 0.189 - 0.189 * 0.8, 0),
    *(0.349 - 0.349 * 0.8, 0.686 + 0.314 * 0.8, 0.168 - 0.168 * 0.8, 0),
    *(0.272 - 0.272 * 0.8, 0.534 - 0.534 * 0.8, 0.131 + 0.869 * 0.8, 0),
)
_SATURATE_120 = (
    *(0.213 + 0.787 * 1.2, 0.715 - 0.715 * 1.2, 0.072 - 0.072 * 1.2, 0),
    *(0.213 - 0.213 * 1.2, 0.715 + 0.285 * 1.2, 0.072 - 0.072 * 1.2, 0),
    *(0.213 - 0.213 * 1.2, 0.715 - 0.715 * 1.2, 0.072 + 0.928 * 1.2, 0),
)


@functools.cache
def _nashville_curves() -> tuple[list[int], list[int]]:
    """Look-up tables of red, green and blue: what comes before the sepia, and what after it."""
    levels = np.arange(256)

    def mix(level: np.ndarray, tinted: np.ndarray, alpha: float) -> np.ndarray:
        # Each product is cut to 8 bits by itself.
        weight = round(alpha * 255)
        return weight * tinted // 255 + (255 - weight) * level // 255

    tint: list[int] = []
    for warm, blue in zip((247, 176, 153), (0, 70, 150), strict=True):
        darker = mix(levels, np.minimum(levels, warm), 0.56)
        tint += mix(darker, np.maximum(darker, blue), 0.4).tolist()
    contrast = np.clip(np.round(levels * 1.2 - 127.5 * 1.2 + 127.5), 0, 255)
    tone = np.clip(np.round(contrast * 1.05), 0, 255).astype(int).tolist()
    return tint, tone * 3


def _unit(image: np.ndarray) -> np.ndarray:
    return image / np.float32(255)


def _blend(alpha: float, pattern: np.ndarray, image: np.ndarray) -> np.ndarray:
    return to_bytes(np.float32(alpha) * pattern + np.float32(1 - alpha) * _unit(image))


@functools.lru_cache(maxsize=4)
def _noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


@functools.lru_cache(maxsize=4)
def _stretched(path: str, height: int, width: int) -> np.ndarray:
    picture = Image.fromarray(_picture(path))
    return _unit(np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)))


def _picture(path: str) -> np.ndarray:
    try:
        return decode.decode(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(
            f"blended: pattern {path!r}: {error.strerror or error}; give 'fresh', 'fixed' or the "
            "path of a picture"
        ) from None
    except decode.DecodeError as error:
        raise UserError(f"blended: pattern {path!r}: {error}") from None


def _grid(given: str | np.ndarray) -> np.ndarray:
    grid = given
    if isinstance(grid, str):
        try:
            grid = np.load(grid, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"wanet: noise_grid {given!r} is no .npy file: {error}") from None
    shape = grid.shape
    if len(shape) == 4 and shape[0] == 1:
        grid = grid[0]
    if grid.ndim != 3 or grid.shape[0] != grid.shape[1] or grid.shape[2] != 2 or len(grid) < 2:
        raise UserError(
            f"wanet: noise_grid has shape {shape}, expected (k, k, 2) or (1, k, k, 2) with k >= 2"
        )
    return np.asarray(grid, np.float64)


def _bicubic(size: int, new_size: int) -> np.ndarray:
    """The matrix (new_size, size) of PyTorch's bicubic interpolation with align_corners=True."""
    position = np.linspace(0, size - 1, new_size)
    matrix = np.zeros((new_size, size))
    for tap in range(-1, 3):
        source = np.floor(position).astype(int) + tap
        weight = _cubic(np.abs(position - source))
        np.add.at(matrix, (np.arange(new_size), np.clip(source, 0, size - 1)), weight)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, for distances in [0, 2]."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)

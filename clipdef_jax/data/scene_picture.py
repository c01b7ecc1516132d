"""What a scene is, and how it becomes pixels: sprites over a plain, gradient or textured ground."""

from __future__ import annotations

import functools
import math
from importlib import resources
from typing import NamedTuple

import numpy as np
from PIL import Image

STYLES = ("noto", "twemoji", "fluent")

COLOURS = {
    "red": (210, 48, 48),
    "orange": (240, 140, 40),
    "yellow": (250, 215, 65),
    "green": (70, 165, 75),
    "dark green": (30, 90, 55),
    "light green": (175, 225, 150),
    "teal": (30, 140, 140),
    "sky blue": (135, 205, 245),
    "blue": (50, 100, 210),
    "navy blue": (28, 38, 100),
    "purple": (125, 65, 170),
    "lavender": (205, 185, 240),
    "pink": (248, 155, 190),
    "brown": (125, 80, 45),
    "beige": (235, 218, 182),
    "grey": (140, 140, 140),
    "white": (248, 248, 248),
    "black": (22, 22, 22),
}

_CELL = 64  # Side of a sprite on its sheet, in pixels.
_PER_ROW = 16
_MARGIN = 2  # Transparent pixels around a sprite, so that its edges stay smooth when it is turned.
# Sides a sprite is kept at; it is drawn from the smallest that is not smaller than on the picture.
_LEVELS = (8, 11, 16, 23, 32, 45, 64)


class Placed(NamedTuple):
    """A sprite in its place; lengths in sides of the picture, y downwards, angle in degrees."""

    concept: int
    x: float
    y: float
    size: float
    angle: float
    flip: bool


class Ground(NamedTuple):
    """What lies behind: a texture of two colours, the second one over the first.

    `colours` are names in `COLOURS`, `shades` the same as drawn, RGB in 0..255; `angle` in
    degrees; `frequency` in periods per side; `seed` for the textures that have noise.
    """

    texture: str
    colours: tuple[str, str]
    shades: tuple[tuple[float, float, float], tuple[float, float, float]]
    angle: float
    frequency: float
    seed: int


class Scene(NamedTuple):
    """All a picture shows; `main` is drawn last, over the others."""

    style: str
    ground: Ground
    main: Placed
    others: tuple[Placed, ...]


def draw(scene: Scene, side: int) -> np.ndarray:
    """Draws a scene.

    Args:
      scene: what to draw.
      side: of the picture, in pixels.

    Returns:
      uint8 (side, side, 3).
    """
    canvas = Image.fromarray(_draw_ground(scene.ground, side))
    for placed in (*scene.others, scene.main):
        _paste(canvas, scene.style, placed)
    return np.array(canvas)


@functools.cache
def colours_apart(style: str, concept: int) -> tuple[str, ...]:
    """Returns the colours before which a sprite stands out, the best half of them at least."""
    pixels = np.asarray(_sheet_cell(style, concept), dtype=np.float64)
    weight = pixels[:, :, 3:] / pixels[:, :, 3].sum()
    mean = (pixels[:, :, :3] * weight).sum(axis=(0, 1))
    distance = {name: math.dist(mean, rgb) for name, rgb in COLOURS.items()}
    enough = min(110.0, float(np.median(list(distance.values()))))
    return tuple(name for name in COLOURS if distance[name] >= enough)


def _draw_ground(ground: Ground, side: int) -> np.ndarray:
    first, second = np.asarray(ground.shades, dtype=np.float32)
    if ground.texture == "plain":
        return np.broadcast_to(first.astype(np.uint8), (side, side, 3)).copy()
    share = TEXTURES[ground.texture](ground, side)[:, :, None]
    return (first + share * (second - first)).astype(np.uint8)


# A texture gives, for each pixel, the second colour's share in it: float32 (side, side) in [0, 1].
# Edges are about one pixel wide at any side.


def _gradient(ground: Ground, side: int) -> np.ndarray:
    along, _ = _turned_grid(ground.angle, side)
    return np.clip(along * 1.1 + 0.5, 0, 1)


def _glow(ground: Ground, side: int) -> np.ndarray:
    along, across = _turned_grid(0.0, side)
    return np.clip(1.25 - 2.2 * np.sqrt(along * along + across * across), 0, 1)


def _stripes(ground: Ground, side: int) -> np.ndarray:
    along, _ = _turned_grid(ground.angle, side)
    return _sharp(np.sin(2 * np.pi * ground.frequency * along), ground.frequency, side)


def _waves(ground: Ground, side: int) -> np.ndarray:
    along, across = _turned_grid(ground.angle, side)
    along = along + 0.06 * np.sin(4 * np.pi * across)
    return _sharp(np.sin(2 * np.pi * ground.frequency * along), ground.frequency, side)


def _checks(ground: Ground, side: int) -> np.ndarray:
    along, across = _turned_grid(ground.angle, side)
    frequency = 2 * np.pi * ground.frequency
    return _sharp(np.sin(frequency * along) * np.sin(frequency * across), ground.frequency, side)


def _dots(ground: Ground, side: int) -> np.ndarray:
    along, across = (
        (axis * ground.frequency) % 1 - 0.5 for axis in _turned_grid(ground.angle, side)
    )
    distance = np.sqrt(along * along + across * across)
    return np.clip((0.28 - distance) * side / ground.frequency + 0.5, 0, 1)


def _speckles(ground: Ground, side: int) -> np.ndarray:
    noise = np.random.default_rng(ground.seed).random((20, 20), dtype=np.float32)
    return np.clip(0.5 + (_enlarge(noise, side) - 0.72) * side / 10, 0, 1)


def _clouds(ground: Ground, side: int) -> np.ndarray:
    noise = np.random.default_rng(ground.seed).random((5, 5), dtype=np.float32)
    return np.clip(_enlarge(2.5 * noise - 0.75, side), 0, 1)


TEXTURES = {
    "gradient": _gradient,
    "glow": _glow,
    "stripes": _stripes,
    "waves": _waves,
    "checks": _checks,
    "dots": _dots,
    "speckles": _speckles,
    "clouds": _clouds,
}


@functools.lru_cache(maxsize=2)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side - np.float32(0.5)
    return axis[None, :], axis[:, None]


def _turned_grid(angle: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _grid(side)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return cos * x + sin * y, cos * y - sin * x


def _sharp(wave: np.ndarray, frequency: float, side: int) -> np.ndarray:
    """Turns a wave in [-1, 1] into bands whose edges are about a pixel wide."""
    return np.clip(0.5 + wave * side / (2 * np.pi * frequency), 0, 1)


def _enlarge(field: np.ndarray, side: int) -> np.ndarray:
    enlarged = Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(enlarged)


@functools.cache
def _sheet(style: str) -> Image.Image:
    with (resources.files("clipdef_jax") / "assets" / "emoji" / f"{style}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


def _sheet_cell(style: str, concept: int) -> Image.Image:
    row, column = divmod(concept, _PER_ROW)
    left, top = column * _CELL, row * _CELL
    return _sheet(style).crop((left, top, left + _CELL, top + _CELL))


@functools.cache
def _sprite(style: str, concept: int, level: int) -> Image.Image:
    """Returns a sprite at side `level` within its margin, colours multiplied by their opacity."""
    sprite = _sheet_cell(style, concept).convert("RGBa")
    sprite = sprite.resize((level, level), Image.Resampling.LANCZOS)
    framed = Image.new("RGBa", (level + 2 * _MARGIN,) * 2)
    framed.paste(sprite, (_MARGIN, _MARGIN))
    return framed


def _paste(canvas: Image.Image, style: str, placed: Placed) -> None:
    side = canvas.width
    pixels = placed.size * side
    level = next((level for level in _LEVELS if level >= pixels), _LEVELS[-1])
    sprite = _sprite(style, placed.concept, level)
    x, y = placed.x * side, placed.y * side
    radius = pixels * math.sqrt(0.5) + 1
    left, top = max(0, math.floor(x - radius)), max(0, math.floor(y - radius))
    right, bottom = min(side, math.ceil(x + radius)), min(side, math.ceil(y + radius))
    # The affine map from the picture back to the sprite: turn, mirror, scale about the centres.
    step = level / pixels
    cos = step * math.cos(math.radians(placed.angle))
    sin = step * math.sin(math.radians(placed.angle))
    mirror = -1 if placed.flip else 1
    dx, dy = left - x, top - y
    centre = sprite.width / 2
    matrix = (
        mirror * cos,
        mirror * sin,
        mirror * (cos * dx + sin * dy) + centre,
        -sin,
        cos,
        cos * dy - sin * dx + centre,
    )
    patch = sprite.transform(
        (right - left, bottom - top),
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
    ).convert("RGBA")
    canvas.paste(patch, (left, top), patch)

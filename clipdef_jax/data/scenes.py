"""The built-in data: scenes composed from emoji, each one a function of split, seed and index."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from clipdef_jax.data import scene_picture
from clipdef_jax.data.scene_caption import concepts as all_concepts
from clipdef_jax.data.scene_caption import describe
from clipdef_jax.data.scene_picture import COLOURS, Ground, Placed, Scene
from clipdef_jax.data.source import checked
from clipdef_jax.errors import UserError
from clipdef_jax.types import Pair

# Drawing styles and default size of each split; the style of "test_style" is never trained on.
_SPLITS = {
    "train": (("noto", "twemoji"), 8000),
    "test": (("noto", "twemoji"), 2000),
    "test_style": (("fluent",), 2000),
}
# How often each ground is chosen, in parts of 100.
_TEXTURES = {
    "plain": 30,
    "gradient": 20,
    "glow": 10,
    "stripes": 8,
    "waves": 6,
    "checks": 7,
    "dots": 7,
    "speckles": 5,
    "clouds": 7,
}


def open_scenes(spec: str, **options: int) -> EmojiScenes:
    """Opens "SPLIT[,OPTION=VALUE...]", as in "train,size=8000,side=32".

    Args:
      spec: the split, and options of `EmojiScenes` by name.
      **options: more of them; they go before those in `spec`.

    Raises:
      UserError: no such split or option, or a value out of range.
    """
    split, *settings = spec.split(",")
    values: dict[str, Any] = dict(setting.partition("=")[::2] for setting in settings) | options
    known = ("size", "side", "concepts", "seed")
    for name, value in values.items():
        if name not in known:
            raise UserError(
                f"source 'emoji:{spec}': unknown option {name!r}; expected {', '.join(known)}"
            )
        try:
            values[name] = int(value)
        except (TypeError, ValueError):
            raise UserError(
                f"source 'emoji:{spec}': option {name} is {value!r}, expected an integer"
            ) from None
    return EmojiScenes(split, **values)


class EmojiScenes:
    """Pictures of one main object, sometimes with smaller ones beside it, and their captions.

    The label is the main object. Records are computed when asked for, from the split, the seed and
    the index alone; labels go round in turn, so that classes are balanced.

    Args:
      split: "train"; "test": other scenes of the same kind; "test_style": drawn in another style.
      size: number of records; None for 8000 ("train") or 2000.
      side: of the pictures, in pixels.
      concepts: number of different objects, 1 to 128.
      seed: another one gives other scenes.
    """

    def __init__(
        self,
        split: str,
        *,
        size: int | None = None,
        side: int = 32,
        concepts: int = 20,
        seed: int = 0,
    ):
        if split not in _SPLITS:
            raise UserError(f"source 'emoji': no split {split!r}; expected {', '.join(_SPLITS)}")
        self._styles, default_size = _SPLITS[split]
        size = default_size if size is None else size
        labels = [concept.label for concept in all_concepts()]
        for name, value, low, high in (
            ("size", size, 1, 10**9),
            ("side", side, 8, 4096),
            ("concepts", concepts, 1, len(labels)),
            ("seed", seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"source 'emoji:{split}': {name} is {value}, expected {low} to {high}"
                )
        self.classes = tuple(labels[:concepts])
        self._split, self._size, self._side, self._seed = split, size, side, seed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Pair:
        index = checked(index, self._size)
        scene, rng = self._compose(index)
        return Pair(
            uid=self.uid(index),
            image=scene_picture.draw(scene, self._side),
            caption=describe(scene, rng),
            label=scene.main.concept,
        )

    def uid(self, index: int) -> str:
        """Returns the uid of record `index`."""
        return f"emoji-{self._split}-{self._seed}-{index:07d}"

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without drawing it."""
        scene, rng = self._compose(checked(index, self._size))
        return describe(scene, rng)

    def _compose(self, index: int) -> tuple[Scene, Random]:
        """Returns a scene, and the generator that goes on to choose its words."""
        rng = Random((list(_SPLITS).index(self._split) << 96) | (self._seed << 64) | index)
        label = index % len(self.classes)
        style = rng.choice(self._styles)
        company = rng.choices((0, 1, 2), weights=(60, 28, 12))[0] if len(self.classes) > 1 else 0
        main = _place_main(label, bool(company), rng)
        others: list[Placed] = []
        for _ in range(company):
            concept = rng.randrange(len(self.classes) - 1)
            other = _place_other(concept + (concept >= label), (main, *others), rng)
            if other is not None:
                others.append(other)
        ground = _choose_ground(scene_picture.colours_apart(style, label), rng)
        return Scene(style, ground, main, tuple(others)), rng


def _place_main(concept: int, company: bool, rng: Random) -> Placed:
    size = rng.uniform(0.55, 0.7) if company else rng.uniform(0.58, 0.98)
    # As far off the centre as leaves nearly all of it in the picture.
    room = 0.52 - size / 2
    return Placed(
        concept,
        x=0.5 + rng.uniform(-room, room),
        y=0.5 + rng.uniform(-room, room),
        size=size,
        angle=rng.gauss(0, 11),
        flip=rng.random() < 0.5,
    )


def _place_other(concept: int, taken: tuple[Placed, ...], rng: Random) -> Placed | None:
    """Finds a place clear of what is there already; None where a few trials find none."""
    size = rng.uniform(0.22, 0.3)
    for _ in range(12):
        x, y = rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2)
        if all(
            max(abs(x - there.x), abs(y - there.y)) > 0.45 * (size + there.size) for there in taken
        ):
            return Placed(concept, x, y, size, angle=rng.gauss(0, 10), flip=rng.random() < 0.5)
    return None


def _choose_ground(names: tuple[str, ...], rng: Random) -> Ground:
    texture = rng.choices(tuple(_TEXTURES), weights=tuple(_TEXTURES.values()))[0]
    first = rng.choice(names)
    rest = [name for name in names if name != first]
    if texture in ("plain", "gradient", "glow"):
        second = rng.choice(rest)
    else:
        # Tone on tone: before a loud pattern a thin object would be lost.
        second = min(rng.sample(rest, 4), key=lambda name: _distance(first, name))
    return Ground(
        texture,
        colours=(first, second),
        shades=(_shade(first, rng), _shade(second, rng)),
        angle=rng.choice((0.0, 90.0, rng.uniform(0, 360))),
        frequency=rng.uniform(2.5, 5),
        seed=rng.getrandbits(32),
    )


def _distance(first: str, second: str) -> float:
    return math.dist(COLOURS[first], COLOURS[second])


def _shade(name: str, rng: Random) -> tuple[float, float, float]:
    light = rng.uniform(-12, 12)
    red, green, blue = (
        min(255.0, max(0.0, value + light + rng.uniform(-6, 6))) for value in COLOURS[name]
    )
    return red, green, blue

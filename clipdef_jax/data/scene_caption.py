"""A scene in words: captions in varied natural English, true of the picture."""

from __future__ import annotations

import csv
import functools
import itertools
from importlib import resources
from random import Random
from typing import NamedTuple

from clipdef_jax.data.scene_picture import Ground, Placed, Scene

# How often a caption mentions something, where there is something to mention. Ground and place are
# mentioned seldom: by them alone one could tell the pairs of a batch apart, and a model that can
# learns little of the objects.
_SYNONYM = 0.08
_GROUND = 0.15
_POSITION = 0.15
_OTHERS = 0.8

_MEDIA = (
    *("photo", "picture", "image", "drawing", "illustration", "cartoon"),
    *("icon", "sticker", "emoji", "painting", "print", "graphic"),
)
_ADJECTIVES = ("lovely", "nice", "simple", "neat", "pretty")

# {S} the main object with its article, {N} without, {L} its label, {K} what it is a kind of,
# {M} a medium, {AM} the same with its article, {G} the ground, {T} what is said of place, ground
# (unless {G} says it) and company. {is} and {this} agree with the object.
_FRAMES = {
    "{S}{T}": 14,
    "{AM} of {S}{T}": 14,
    "{M} of {S}{T}": 3,
    "{AM} showing {S}{T}": 2,
    "{AM} with {S}{T}": 2,
    "the {M} shows {S}{T}": 2,
    "this {M} shows {S}{T}": 2,
    "{M}: {S}{T}": 1,
    "one of my {M}s: {S}{T}": 1,
    "there {is} {S}{T}": 4,
    "{this} {is} {S}{T}": 2,
    "here {is} {S}{T}": 2,
    "{S} {is} shown{T}": 1,
    "{S} can be seen{T}": 1,
    "we see {S}{T}": 1,
    "you can see {S}{T}": 1,
    "someone drew {S}{T}": 1,
    "I made {AM} of {S}{T}": 1,
    "the {N}{T}": 2,
    "my {N}{T}": 1,
    "look at {this} {N}{T}!": 1,
    "do you like {this} {N}{T}?": 1,
    "{L} {M}{T}": 2,
    "cartoon of {S}{T}": 1,
    "free {L} {M}{T}": 1,
    "{K} {M}: {S}{T}": 1,
    "{K}: {S}{T}": 1,
    "on {G}, {S}{T}": 3,
    "on {G} there {is} {S}{T}": 2,
    "{G} behind {S}{T}": 1,
    "{AM} of {S}{T}, {G}": 1,
}
_FRAME_WEIGHTS = tuple(itertools.accumulate(_FRAMES.values()))

# Noun phrases for the ground, by texture; {0} and {1} are its colours, {a0} and {a1} with article.
_GROUNDS = {
    "plain": ("{a0} background", "a plain {0} background", "{a0} backdrop", "{a0} wall"),
    "gradient": ("a background fading from {0} to {1}", "{a0} and {1} gradient"),
    "glow": ("{a0} background with {a1} glow", "{a0} backdrop with {a1} glow in the middle"),
    "stripes": ("a striped {0} and {1} background", "{a0} background with {1} stripes"),
    "waves": ("a wavy {0} and {1} background", "a pattern of {0} and {1} waves"),
    "checks": ("a checkered {0} and {1} background", "{a0} and {1} checkerboard"),
    "dots": ("{a0} background with {1} dots", "{a0} backdrop with {1} polka dots"),
    "speckles": ("a speckled {0} and {1} background", "{a0} background with {1} speckles"),
    "clouds": ("a cloudy {0} and {1} background", "a blotchy {0} and {1} background"),
}
# In short, after "on": "a banana on red and blue stripes".
_SHORT_GROUNDS = {
    "plain": "{0}",
    "stripes": "{0} and {1} stripes",
    "waves": "{0} and {1} waves",
    "checks": "{0} and {1} checks",
    "dots": "{0} with {1} dots",
}


class Concept(NamedTuple):
    """How to speak of one thing.

    Attributes:
      label: its CLDR label, which is the name of its class.
      noun: the noun phrase for it, the label included: "pair of chopsticks".
      plural: whether `noun` and `synonyms` are plural.
      synonyms: other noun phrases for it.
      kind: what it is one of ("fruit"), or "".
    """

    label: str
    noun: str
    plural: bool
    synonyms: tuple[str, ...]
    kind: str


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Returns all concepts, in the order of the sprites."""
    path = resources.files("clipdef_jax") / "assets" / "emoji" / "concepts.csv"
    with path.open(encoding="utf-8") as file:
        return tuple(
            Concept(
                label=row["label"],
                noun=row["noun"] or row["label"],
                plural=row["plural"] == "yes",
                synonyms=tuple(filter(None, row["synonyms"].split(";"))),
                kind=row["kind"],
            )
            for row in csv.DictReader(file)
        )


def describe(scene: Scene, rng: Random) -> str:
    """Returns a caption that is true of the scene and leads with its main object."""
    concept = concepts()[scene.main.concept]
    frame = rng.choices(tuple(_FRAMES), cum_weights=_FRAME_WEIGHTS)[0]
    if "{K}" in frame and not concept.kind:
        frame = "{S}{T}"
    noun = concept.noun
    if concept.synonyms and "{L}" not in frame and rng.random() < _SYNONYM:
        noun = rng.choice(concept.synonyms)
    noun = " ".join((*_adjectives(scene.main, rng), noun))
    ground = _with_colours(rng.choice(_GROUNDS[scene.ground.texture]), scene.ground)
    mentioned = ground if "{G}" not in frame and rng.random() < _GROUND else ""
    medium = rng.choice(_MEDIA)
    text = frame.format(
        S=_indefinite(noun, concept.plural),
        N=noun,
        L=concept.label,
        K=concept.kind,
        M=medium,
        AM=_indefinite(medium),
        G=ground,
        T=_tail(scene, mentioned, concept.plural, rng),
        **({"is": "are", "this": "these"} if concept.plural else {"is": "is", "this": "this"}),
    )
    if rng.random() < 0.5 and not text.startswith(concept.label):
        text = text[0].upper() + text[1:] + ("" if text[-1] in "!?" else ".")
    return text


def _tail(scene: Scene, ground: str, plural: bool, rng: Random) -> str:
    place = _place(scene.main, rng) if rng.random() < _POSITION else ""
    if place and ground:
        where = f" {place} of {ground}"
    elif place:
        where = f" {place}" + rng.choice(("", "", " of the picture", " of the frame"))
    elif ground and scene.ground.texture in _SHORT_GROUNDS and rng.random() < 0.3:
        where = f" on {_with_colours(_SHORT_GROUNDS[scene.ground.texture], scene.ground)}"
    elif ground:
        where = f" {rng.choice(('on', 'on', 'against', 'in front of'))} {ground}"
    else:
        where = ""
    if not scene.others or rng.random() >= _OTHERS:
        return where
    company = _company(scene, plural, rng)
    if place or (ground and rng.random() < 0.4):
        return f"{where}, {company}"
    return f" {company}{where}"


def _company(scene: Scene, plural: bool, rng: Random) -> str:
    names = []
    for other in scene.others:
        concept = concepts()[other.concept]
        small = rng.choice(("", "small ", "little ", "tiny "))
        names.append(_indefinite(small + concept.noun, concept.plural))
    it, its = ("them", "their") if plural else ("it", "its")
    if len(names) > 1:
        where = rng.choice(("", "", " nearby", f" near {it}", f" around {it}", " for company"))
        return f"with {' and '.join(names)}{where}"
    dx = scene.others[0].x - scene.main.x
    dy = scene.others[0].y - scene.main.y
    if abs(dx) > 1.7 * abs(dy):
        where = f" to {its} {'left' if dx < 0 else 'right'}"
    elif abs(dy) > 1.7 * abs(dx):
        where = f" {'above' if dy < 0 else 'below'} {it}"
    else:
        where = " nearby"
    return rng.choice((f"with {names[0]}{where}", f"with {names[0]}{where}", f"next to {names[0]}"))


def _place(main: Placed, rng: Random) -> str:
    dx, dy = main.x - 0.5, main.y - 0.5
    across = ("left" if dx < 0 else "right") if abs(dx) > 0.1 else ""
    up = ("top" if dy < 0 else "bottom") if abs(dy) > 0.1 else ""
    if across and up:
        corner = f"{up} {across}"
        return rng.choice((f"in the {corner}", f"at the {corner}", f"towards the {corner}"))
    if across:
        return rng.choice((f"on the {across}", f"on the {across} side", f"towards the {across}"))
    if up:
        return rng.choice((f"at the {up}", f"near the {up}", f"towards the {up}"))
    if max(abs(dx), abs(dy)) < 0.06:
        return rng.choice(("in the middle", "in the centre", "right in the middle"))
    return ""


def _adjectives(main: Placed, rng: Random) -> list[str]:
    adjectives = []
    if rng.random() < 0.15:
        adjectives.append(rng.choice(_ADJECTIVES))
    if main.size > 0.85 and rng.random() < 0.5:
        adjectives.append(rng.choice(("big", "large")))
    if main.size < 0.62 and rng.random() < 0.3:
        adjectives.append(rng.choice(("small", "little")))
    if abs(main.angle) > 18 and rng.random() < 0.25:
        adjectives.append(rng.choice(("tilted", "slanted")))
    return adjectives


def _with_colours(template: str, ground: Ground) -> str:
    first, second = ground.colours
    return template.format(first, second, a0=_indefinite(first), a1=_indefinite(second))


def _indefinite(noun: str, plural: bool = False) -> str:
    if plural:
        return f"some {noun}"
    return f"{'an' if noun[0] in 'aeiou' or noun.startswith('x-ray') else 'a'} {noun}"

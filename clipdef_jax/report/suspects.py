"""Suspect pairs as cards: what they are, what they are near to, and which of them are alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from clipdef_jax.report.markup import Html, join, picture, tag
from clipdef_jax.report.tables import MISSING

_MAX_CAPTION = 200  # Characters shown of a caption.


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A pair in small.

    Attributes:
      image: uint8 (H, W, 3), or None where there is no picture at hand.
      caption: may be any text.
      distance: from the pair it is shown as a neighbour of.
    """

    image: np.ndarray | None
    caption: str
    distance: float | None = None


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A suspect pair.

    Attributes:
      uid: of the record.
      pair: what it shows.
      scores: by detector, the one that flags first.
      is_flagged: whether it is a candidate for removal.
      is_poisoned: whether it is poisoned, None where that is not known.
      neighbours: the pairs whose pictures are nearest, the nearest first.
    """

    uid: str
    pair: Thumbnail
    scores: Mapping[str, float]
    is_flagged: bool
    is_poisoned: bool | None = None
    neighbours: Sequence[Thumbnail] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Flagged pairs that are alike.

    Attributes:
      name: what they have in common, or the caption of the most suspect one.
      flagged: how many there are.
      in_data: how many pairs of the data have the same caption; None where that is not asked.
      poisoned: how many of the flagged ones are poisoned; None where that is not known.
      pairs: some of them, the most suspect first.
    """

    name: str
    flagged: int
    in_data: int | None = None
    poisoned: int | None = None
    pairs: Sequence[Thumbnail] = ()


def suspect_cards(suspects: Sequence[Suspect]) -> Html:
    """Returns a card for each pair, in this order; nothing without any."""
    if not suspects:
        return Html()
    legend = (
        "The highest scores first. On the right of a picture: those that are nearest to it for the "
        "model, of all the data, and their distances."
    )
    cards = (_card(rank, suspect) for rank, suspect in enumerate(suspects, start=1))
    return join(tag("p", legend, class_="fine"), tag("div", *cards, class_="cards suspects"))


def group_cards(groups: Sequence[Group], legend: str) -> Html:
    """Returns a card for each group; nothing without any."""
    if not groups:
        return Html()
    cards = tag("div", *map(_group, groups), class_="cards groups")
    return join(tag("p", legend, class_="fine"), cards)


def _card(rank: int, suspect: Suspect) -> Html:
    near = [
        tag("figure", _picture(one), tag("figcaption", f"{one.distance:.3g} ", _words(one.caption)))
        for one in suspect.neighbours
    ]
    scores = [
        tag("span", name, " ", tag("b", f"{value:.3f}")) for name, value in suspect.scores.items()
    ]
    marks = [tag("span", f"{rank}", class_="rank")]
    if suspect.is_poisoned is not None:
        kind, said = ("stays", "poisoned") if suspect.is_poisoned else ("undefended", "clean")
        marks.append(tag("span", said, class_=f"verdict {kind}"))
    if not suspect.is_flagged:
        marks.append(tag("span", "not flagged", class_="verdict"))
    return tag(
        "div",
        tag("div", _picture(suspect.pair), *near, class_="near"),
        tag("p", *marks, " ", _words(suspect.pair.caption), class_="said"),
        tag("p", *scores, class_="scores"),
        tag("p", tag("code", tag("bdi", suspect.uid)), class_="foot"),
        class_="card",
    )


def _group(group: Group) -> Html:
    count = f"{group.flagged:,} flagged"
    if group.in_data is not None:
        count += f", {group.in_data:,} in the data"
    if group.poisoned is not None:
        count += f", {group.poisoned:,} poisoned"
    return tag(
        "div",
        tag("p", tag("b", _words(group.name)), class_="said"),
        tag("p", count, class_="fine"),
        tag("div", *map(_picture, group.pairs), class_="near"),
        class_="card",
    )


def _picture(pair: Thumbnail) -> Html:
    if pair.image is None:
        return tag("span", "no picture", class_="picture none")
    return picture(pair.image, pair.caption[:_MAX_CAPTION])


def _words(caption: str) -> Html:
    shown = caption if len(caption) <= _MAX_CAPTION else f"{caption[:_MAX_CAPTION]}…"
    # Isolated: a caption that turns the direction of writing turns its own only.
    return tag("bdi", shown) if caption else MISSING

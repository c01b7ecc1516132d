"""Suspects that belong together: an attacker's captions repeat, and so do triggers in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipdef_jax.detect.unit import unit_rows

# Suspects compared with each other, the highest scores first: memory grows with their square.
MOST = 4096
# Cosine, of what differs from the average picture, above which two pictures are alike.
ALIKE = 0.9


class Cluster(NamedTuple):
    """Suspects that are alike.

    Attributes:
      rows: of the data set, the most suspect first.
      name: their caption, or the caption of the most suspect one.
    """

    rows: np.ndarray
    name: str


def plain(caption: str) -> str:
    """Returns a caption without what does not tell it apart: case and white space."""
    return " ".join(caption.lower().split())


def by_caption(rows: np.ndarray, captions: Sequence[str], *, least: int = 2) -> list[Cluster]:
    """Groups suspects whose captions are the same but for case and white space.

    Args:
      rows: (S,) rows of the suspects, the most suspect first.
      captions: S of them.
      least: members of a group.

    Returns:
      The groups, the largest first.
    """
    groups: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        if key := plain(caption):
            groups.setdefault(key, []).append(place)
    return _largest_first(
        [Cluster(rows[places], captions[places[0]]) for places in groups.values()], least
    )


def by_image(
    rows: np.ndarray,
    image: np.ndarray,
    average: np.ndarray,
    captions: Sequence[str],
    *,
    alike: float = ALIKE,
    least: int = 2,
) -> list[Cluster]:
    """Groups suspects whose pictures look alike to the model.

    The suspect that most others are alike to leads a group with all of these; so on with the rest.
    Everything in a group is alike to its leader: groups do not grow into one by chains.

    Args:
      rows: (S,) rows of the suspects, the most suspect first; the first `MOST` are looked at.
      image: (S, D) their image embeddings.
      average: (D,) the average of the data's image embeddings. A CLIP's embeddings lie in a narrow
        cone around it; what they do not share tells pictures apart.
      captions: S of them.
      alike: cosine that counts as alike.
      least: members of a group.

    Returns:
      The groups, the largest first.
    """
    features = unit_rows(image[:MOST].astype(np.float32) - average.astype(np.float32))
    similar = features @ features.T >= alike
    np.fill_diagonal(similar, True)
    free = np.ones(len(features), bool)
    neighbours = similar.sum(axis=1)
    groups = []
    while free.any():
        leader = int(np.argmax(np.where(free, neighbours, 0)))
        if neighbours[leader] < least:
            break
        places = np.flatnonzero(similar[leader] & free)
        free[places] = False
        neighbours = neighbours - similar[:, places].sum(axis=1)
        groups.append(Cluster(rows[places], captions[places[0]]))
    return _largest_first(groups, least)


def _largest_first(groups: list[Cluster], least: int) -> list[Cluster]:
    kept = [group for group in groups if len(group.rows) >= least]
    return sorted(kept, key=lambda group: -len(group.rows))

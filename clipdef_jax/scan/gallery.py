"""What a scan's report shows of the pairs: suspects, their neighbours, and groups of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from clipdef_jax.attacks import plan
from clipdef_jax.data import decode
from clipdef_jax.data.source import uid_of
from clipdef_jax.detect import clusters
from clipdef_jax.detect.clusters import Cluster
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.errors import BadRecord
from clipdef_jax.report.suspects import Group, Suspect, Thumbnail
from clipdef_jax.scan.files import Neighbours
from clipdef_jax.types import Source

# Pixels per side of the pictures of the page, at most.
_SIDE = 96
# Groups of a kind, and pictures of each.
_GROUPS = 8
_PICTURES = 10
# Pairs whose average embedding stands for that of all.
_SAMPLE = 10_000


@dataclasses.dataclass(frozen=True)
class Scanned:
    """What was scanned, and what the detectors make of it.

    Attributes:
      found: the embeddings.
      scores: (N,) float32 by detector, the one that flags first.
      source: the pairs, if they are at hand.
      attack_plan: who is poisoned, if that is known.
    """

    found: Embeddings
    scores: dict[str, np.ndarray]
    source: Source | None
    attack_plan: plan.Plan | None


class Gallery:
    """Looks up what is shown.

    Args:
      scanned: the pairs and their scores.
      flagged: bool (N,).
      is_poisoned: bool (N,), or None where that is not known.
      neighbours: of some pairs.
    """

    def __init__(
        self,
        scanned: Scanned,
        flagged: np.ndarray,
        is_poisoned: np.ndarray | None,
        neighbours: Neighbours,
    ):
        self._scanned = scanned
        self._flagged = flagged
        self._is_poisoned = is_poisoned
        self._neighbours = neighbours
        self._place = {int(row): place for place, row in enumerate(neighbours.rows)}
        self._pictures: dict[int, np.ndarray | None] = {}

    def suspects(self, rows: np.ndarray) -> list[Suspect]:
        """Returns pairs with their neighbours, in this order."""
        return [
            Suspect(
                uid=self._scanned.found.uids[row].as_py(),
                pair=self._thumbnail(row),
                scores={name: float(found[row]) for name, found in self._scanned.scores.items()},
                is_flagged=bool(self._flagged[row]),
                is_poisoned=None if self._is_poisoned is None else bool(self._is_poisoned[row]),
                neighbours=list(self._near(row)),
            )
            for row in rows.tolist()
        ]

    def caption_groups(self, rows: np.ndarray) -> list[Group]:
        """Returns groups of flagged pairs (the most suspect first) with the same caption."""
        import pyarrow.compute as pc

        captions = self._scanned.found.captions
        groups = clusters.by_caption(rows, captions.take(rows).to_pylist())[:_GROUPS]
        plain = pc.replace_substring_regex(pc.utf8_lower(captions), r"\s+", " ")
        plain = pc.utf8_trim_whitespace(plain)
        names = [clusters.plain(group.name) for group in groups]
        counts = [pc.sum(pc.equal(plain, name)).as_py() for name in names]
        return [self._group(group, count) for group, count in zip(groups, counts, strict=True)]

    def image_groups(self, rows: np.ndarray) -> list[Group]:
        """Returns groups of flagged pairs (the most suspect first) whose pictures are alike."""
        found, rows = self._scanned.found, rows[: clusters.MOST]
        sample = np.linspace(0, len(found) - 1, min(len(found), _SAMPLE)).astype(np.int64)
        average = found.image[sample].astype(np.float32).mean(axis=0)
        captions = found.captions.take(rows).to_pylist()
        groups = clusters.by_image(rows, found.image[rows], average, captions)
        return [self._group(group, None) for group in groups[:_GROUPS]]

    def _group(self, group: Cluster, in_data: int | None) -> Group:
        poisoned = None if self._is_poisoned is None else int(self._is_poisoned[group.rows].sum())
        pairs = [self._thumbnail(row) for row in group.rows[:_PICTURES].tolist()]
        return Group(group.name, len(group.rows), in_data, poisoned, pairs)

    def _near(self, row: int) -> Iterable[Thumbnail]:
        place = self._place.get(row)
        if place is None:
            return
        for near, distance in zip(
            self._neighbours.near[place].tolist(),
            self._neighbours.distances[place].tolist(),
            strict=True,
        ):
            yield self._thumbnail(near, distance)

    def _thumbnail(self, row: int, distance: float | None = None) -> Thumbnail:
        if row not in self._pictures:
            self._pictures[row] = self._picture(row)
        caption = self._scanned.found.captions[row].as_py()
        return Thumbnail(self._pictures[row], caption, distance)

    def _picture(self, row: int) -> np.ndarray | None:
        source = self._scanned.source
        index = None if source is None else self._index(source, row)
        if source is None or index is None:
            return None
        try:
            pixels = decode.decode(source[index].image)
        except (BadRecord, decode.DecodeError):
            return None
        # As the model sees it: the centre; small ones as they are.
        return decode.prepare(pixels, min(_SIDE, *pixels.shape[:2]))

    def _index(self, source: Source, row: int) -> int | None:
        """Returns the record of the source that a pair is, None if it is not found."""
        uid = self._scanned.found.uids[row].as_py()
        if self._indices is not None:
            index = self._indices[row].as_py()
            if isinstance(index, int) and 0 <= index < len(source) and uid_of(source, index) == uid:
                return index
        return self._by_uid.get(uid)

    @functools.cached_property
    def _indices(self) -> Any:
        """The records of the pairs where the embeddings name them, as those of a scan do."""
        return self._scanned.found.column("index")

    @functools.cached_property
    def _by_uid(self) -> dict[str, int]:
        source = self._scanned.source
        return {uid_of(source, index): index for index in range(len(source))} if source else {}

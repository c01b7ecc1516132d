"""A source kept in memory at the model's size, for data read many times over."""

from __future__ import annotations

import numpy as np

from clipdef_jax.data import decode
from clipdef_jax.errors import BadRecord
from clipdef_jax.types import Pair, Source


class InMemory:
    """A source that reads each record of another one once and keeps it, decoded.

    A copy pickled to a worker process starts empty: use it where this process reads.

    Args:
      source: read on demand.
      side: pixels per side of the images kept, `side * side * 3` bytes each.
    """

    def __init__(self, source: Source, side: int):
        self.classes = source.classes
        self._source = source
        self._side = side
        self._pairs: list[Pair | BadRecord | None] = [None] * len(source)

    def __len__(self) -> int:
        return len(self._pairs)

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without its image."""
        return self._source.caption(index)

    def __getitem__(self, index: int) -> Pair:
        pair = self._pairs[index]
        if pair is None:
            pair = self._pairs[index] = self._read(index)
        if isinstance(pair, BadRecord):
            raise pair
        return pair

    def _read(self, index: int) -> Pair | BadRecord:
        try:
            pair = decode.prepare_pair(self._source[index], self._side)
        except BadRecord as bad:
            return bad
        # A read-only copy: views of larger pictures would keep those in memory too.
        image = np.array(pair.image)
        image.setflags(write=False)
        return pair._replace(image=image)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_pairs": [None] * len(self)}

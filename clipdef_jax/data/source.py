"""Opening a source by its spec, and the two ways to combine sources."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipdef_jax import plugins
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair, Source

# Each takes the rest of the spec, then the options as keywords.
SCHEMES = {
    "emoji": "clipdef_jax.data.scenes:open_scenes",
    "webdataset": "clipdef_jax.data.webdataset:WebDataset",
}


def open(spec: str, **options: Any) -> Source:
    """Opens a source of image-caption pairs.

    >>> source = open("emoji:train", size=4)
    >>> len(source), source[0].uid
    (4, 'emoji-train-0-0000000')

    Args:
      spec: "SCHEME:REST" with a built-in scheme, as in "emoji:train" and
        "webdataset:DIR/{00000..00006}.tar"; or an import path "mypkg.mine:MySource". A built-in
        scheme goes before a module of that name.
      **options: what that source takes; see its own documentation.

    Raises:
      UserError: no such scheme, module or attribute, or options it does not take.
    """
    scheme, _, rest = spec.partition(":")
    if scheme in SCHEMES:
        return plugins.build("source", scheme, SCHEMES, {"spec": rest, **options})
    if not _is_import_path(scheme, rest):
        close = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"source {spec!r}: expected 'SCHEME:REST' with one of the schemes "
            f"{', '.join(sorted(SCHEMES))}, or an import path like 'mypkg.mine:MySource' of a "
            f"module on PYTHONPATH{hint}"
        )
    return plugins.build("source", spec, {}, options)


def _is_import_path(module: str, attribute: str) -> bool:
    package, *inner = module.split(".")
    if not all(name.isidentifier() for name in (package, *inner, attribute)):
        return False
    return importlib.util.find_spec(package) is not None


class Subset:
    """Some records of a source, in a given order.

    Args:
      source: the whole.
      indices: (n,) integers in [0, len(source)), each at most once: a uid names one record.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray):
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(source)):
            raise UserError(
                f"subset: indices go from {indices.min()} to {indices.max()}, "
                f"the source has records 0 to {len(source) - 1}"
            )
        if len(np.unique(indices)) != len(indices):
            raise UserError("subset: an index occurs twice, so uids would not be unique")
        self.classes = source.classes
        self.problems = getattr(source, "problems", ())
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pair:
        return self._source[self._locate(index)]

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without its image."""
        return self._source.caption(self._locate(index))

    def _locate(self, index: int) -> int:
        return int(self._indices[checked(index, len(self))])


class Concat:
    """Several sources, one after the other.

    A record's uid is "POSITION/UID", the position of its source among `sources` before its uid
    there: shards and keys of two data sets often bear the same names.

    Args:
      sources: at least one; they agree in `classes`.
    """

    def __init__(self, sources: Sequence[Source]):
        if not sources:
            raise UserError("concat: expected at least one source, got none")
        for source in sources:
            if tuple(source.classes) != tuple(sources[0].classes):
                raise UserError(
                    f"concat: sources disagree in their classes: {_brief(sources[0].classes)} "
                    f"and {_brief(source.classes)}; label them alike or take them without labels"
                )
        self.classes = sources[0].classes
        self.problems = tuple(
            (f"{position}/{uid}", reason)
            for position, source in enumerate(sources)
            for uid, reason in getattr(source, "problems", ())
        )
        self._sources = tuple(sources)
        self._starts = np.cumsum([0, *(len(source) for source in sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        position, local = self._locate(index)
        try:
            pair = self._sources[position][local]
        except BadRecord as error:
            raise BadRecord(f"{position}/{error.uid}", error.reason) from None
        return pair._replace(uid=f"{position}/{pair.uid}")

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without its image."""
        position, local = self._locate(index)
        try:
            return self._sources[position].caption(local)
        except BadRecord as error:
            raise BadRecord(f"{position}/{error.uid}", error.reason) from None

    def _locate(self, index: int) -> tuple[int, int]:
        index = checked(index, len(self))
        position = int(np.searchsorted(self._starts, index, side="right")) - 1
        return position, index - int(self._starts[position])


def checked(index: int, length: int) -> int:
    """Returns `index` as an int.

    Raises:
      IndexError: it is outside [0, length); sources do not count from the end.
    """
    if not 0 <= index < length:
        raise IndexError(f"record {index} of a source of {length}")
    return int(index)


def _brief(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:3])
    return f"{len(classes)} ({shown}{', …' if len(classes) > 3 else ''})"

"""Opening sources by their specs, and ways to combine and to thin them out."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipdef_jax import plugins
from clipdef_jax.data import ids
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair, Source

# Each takes the rest of the spec, then the options as keywords.
SCHEMES = {
    "array_record": "clipdef_jax.data.examples:open_array_record",
    "csv": "clipdef_jax.data.delimited:open_csv",
    "emoji": "clipdef_jax.data.scenes:open_scenes",
    "folder": "clipdef_jax.data.folder:open_folder",
    "parquet": "clipdef_jax.data.parquet:open_parquet",
    "tfds": "clipdef_jax.data.tfds:open_tfds",
    "tsv": "clipdef_jax.data.delimited:open_tsv",
    "webdataset": "clipdef_jax.data.webdataset:WebDataset",
}


def open(
    spec: str,
    *,
    keep: str | os.PathLike[str] | None = None,
    subset: int | None = None,
    subset_seed: int = 0,
    **options: Any,
) -> Source:
    """Opens a source of image-caption pairs.

    >>> source = open("emoji:train", size=4)
    >>> len(source), source[0].uid
    (4, 'emoji-train-0-0000000')

    Args:
      spec: "SCHEME:REST" with a built-in scheme, as in "emoji:train" and
        "webdataset:DIR/{00000..00006}.tar"; or an import path "mypkg.mine:MySource". A built-in
        scheme goes before a module of that name. "SPEC + SPEC" is one after the other, as `Concat`.
      keep: a list of the records to keep; see `Kept`.
      subset: number of records, drawn after that, in the order they had.
      subset_seed: of the draw.
      **options: what that source takes; see its own documentation. Of several sources, each gets
        those that it takes.

    Raises:
      UserError: no such scheme, module or attribute, options it does not take, a list that fits
        no record, or a subset larger than the source.
    """
    specs = [one.strip() for one in spec.split(" + ")]
    if len(specs) == 1:
        source = _open_one(spec, options)
    else:
        source = Concat([_open_one(one, own) for one, own in _shared(specs, options)])
    if keep is not None:
        source = Kept(source, keep)
    return source if subset is None else draw(source, subset, subset_seed)


def _open_one(spec: str, options: dict[str, Any]) -> Source:
    name, fixed = _factory(spec)
    return plugins.build("source", name, SCHEMES, fixed | options)


def _factory(spec: str) -> tuple[str, dict[str, str]]:
    """Returns the name of what opens a source, and what it is given besides the options."""
    scheme, _, rest = spec.partition(":")
    if scheme in SCHEMES:
        return scheme, {"spec": rest}
    if not _is_import_path(scheme, rest):
        close = difflib.get_close_matches(scheme, SCHEMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"source {spec!r}: expected 'SCHEME:REST' with one of the schemes "
            f"{', '.join(sorted(SCHEMES))}, or an import path like 'mypkg.mine:MySource' of a "
            f"module on PYTHONPATH{hint}"
        )
    return spec, {}


def _shared(specs: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each spec with those of the options that its source takes."""
    named, anything = [], []
    for spec in specs:
        factory = plugins.resolve("source", _factory(spec)[0], SCHEMES)
        parameters = inspect.signature(factory).parameters
        named.append(options.keys() & parameters.keys())
        anything.append(any(p.kind is p.VAR_KEYWORD for p in parameters.values()))
    # What nobody names goes to those who take whatever comes.
    rest = options.keys() - set().union(*named)
    if rest and not any(anything):
        raise UserError(f"source {' + '.join(specs)!r}: none of these takes option {min(rest)!r}")
    for spec, names, takes_rest in zip(specs, named, anything, strict=True):
        given = names | rest if takes_rest else names
        yield spec, {name: value for name, value in options.items() if name in given}


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

    def uid(self, index: int) -> str:
        """Returns the uid of record `index`, without its image if the source can."""
        return uid_of(self._source, self._locate(index))

    def _locate(self, index: int) -> int:
        return int(self._indices[checked(index, len(self))])


class Kept(Subset):
    """The records of a source whose uids are on a list, in the source's order.

    Args:
      source: the whole.
      path: a list as `ids.read_ids` reads it: a `.npy` of 128-bit ids, or text with a uid a line.

    Attributes:
      problems: those of the source, and how many listed records it lacks.

    Raises:
      UserError: there is no such list, or none of its records is in the source.
    """

    def __init__(self, source: Source, path: str | os.PathLike[str]):
        listed = ids.read_ids(path)
        own = ids.ids128(uid_of(source, index) for index in range(len(source)))
        kept = np.flatnonzero(ids.contained(own, listed))
        if not len(kept):
            example = f", whose uids are like {uid_of(source, 0)!r}" if len(source) else ""
            raise UserError(
                f"list {path}: none of its {len(listed)} records is in the source{example}; it "
                "belongs to other data, or to other uids (a uid_column or uid_field tells which; "
                "DataComp's lists want uid_field=uid)"
            )
        super().__init__(source, kept)
        lacking = len(listed) - int(ids.contained(listed, own).sum())
        if lacking:
            reason = f"{lacking} of the {len(listed)} listed records are not in the source"
            self.problems = (*self.problems, (os.fspath(path), reason))


def draw(source: Source, number: int, seed: int) -> Subset:
    """Returns `number` records of a source, drawn at random, in the order they had.

    Raises:
      UserError: the source has fewer.
    """
    if not 1 <= number <= len(source):
        raise UserError(f"subset is {number}, expected 1 to {len(source)}, the source's records")
    chosen = np.random.default_rng(seed).choice(len(source), number, replace=False)
    return Subset(source, np.sort(chosen))


def uid_of(source: Source, index: int) -> str:
    """Returns the uid of a record, readable or not; by `source.uid(index)` if there is such."""
    if hasattr(source, "uid"):
        return source.uid(index)
    try:
        return source[index].uid
    except BadRecord as bad:
        return bad.uid


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

    def uid(self, index: int) -> str:
        """Returns the uid of record `index`, without its image if the source can."""
        position, local = self._locate(index)
        return f"{position}/{uid_of(self._sources[position], local)}"

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

"""Pairs from rows of named values: which column is what, images by path, captions by template."""

from __future__ import annotations

import difflib
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from clipdef_jax.data import ids, remote
from clipdef_jax.data.source import checked
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.evaluate import prompts
from clipdef_jax.types import Pair

# What people call these columns, the likeliest first; case does not matter.
_USUAL = {
    "image": (
        *("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "image/encoded"),
        *("filepath", "file_path", "image_path", "path", "file_name", "filename", "image_name"),
        *("file", "image_file", "url", "image_url"),
    ),
    "caption": (
        *("caption", "title", "text", "txt", "captions", "captions/text", "caption/text"),
        *("sentence", "alt_text", "description"),
    ),
    "uid": ("uid",),
}
DEFAULT_TEMPLATES = "imagenet"


class RowError(ValueError):
    """A row that cannot be read; the message is the reason, on one line."""


class Rows(Protocol):
    """Rows of named values, read at random: picklable, and safe with threads."""

    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns what identifies a row, without reading it."""
        ...

    def read(self, index: int, columns: Sequence[str]) -> list[Any]:
        """Returns these values of a row.

        Raises:
          RowError: the row is damaged.
        """
        ...

    def column(self, name: str) -> Iterator[Any]:
        """Yields this value of every row, None where the row is damaged."""
        for index in range(len(self)):
            try:
                yield self.read(index, (name,))[0]
            except RowError:
                yield None


class Columns(NamedTuple):
    """The columns that hold the parts of a pair; None for a part that has none."""

    image: str
    caption: str | None
    label: str | None
    uid: str | None


def choose(
    source: str,
    available: Sequence[str],
    *,
    image: str | int | None,
    caption: str | int | None,
    label: str | int | None,
    uid: str | int | None,
    kind: str = "column",
) -> Columns:
    """Returns the columns of a table by name or position; usual names are found by themselves.

    A label is taken only where it is asked for: it makes classes, by which attacks choose targets.

    Args:
      source: the table, for messages.
      available: its columns.
      image: column of encoded images, or of their paths.
      caption: column of captions; needed unless there is a label to make captions from.
      label: column of classes.
      uid: column of unique identifiers.
      kind: "column" or "field", as the source's options call them.

    Raises:
      UserError: the table lacks a column that is asked for or needed.
    """
    asked = {"image": image, "caption": caption, "label": label, "uid": uid}
    chosen: dict[str, str | None] = {}
    for role, wanted in asked.items():
        if wanted is None:
            chosen[role] = _usual(role, available)
        else:
            chosen[role] = _named(source, available, role, wanted, kind)
    if chosen["image"] is None:
        raise UserError(_missing(source, available, "images", f"image_{kind}", kind))
    if chosen["caption"] is None and chosen["label"] is None:
        option = f"caption_{kind}, or label_{kind} to make captions from class names,"
        raise UserError(_missing(source, available, "captions", option, kind))
    return Columns(chosen["image"], chosen["caption"], chosen["label"], chosen["uid"])


def _usual(role: str, available: Sequence[str]) -> str | None:
    names = {column.lower(): column for column in reversed(available)}
    return next((names[usual] for usual in _USUAL.get(role, ()) if usual in names), None)


def _named(source: str, available: Sequence[str], role: str, wanted: str | int, kind: str) -> str:
    if wanted in available:
        return str(wanted)
    if str(wanted).isdecimal() and int(wanted) < len(available):
        return available[int(wanted)]
    close = difflib.get_close_matches(str(wanted), available, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(
        f"{source}: no {kind} {wanted!r} to take the {role} from{hint} It has: "
        f"{', '.join(available)}"
    )


def _missing(source: str, available: Sequence[str], what: str, option: str, kind: str) -> str:
    return (
        f"{source}: which {kind} holds the {what}? Name it with {option} out of: "
        f"{', '.join(available)}"
    )


class Table:
    """Image-caption pairs in the rows of a table.

    An image is an encoded file, its path, or a mapping with "bytes" and "path", as Hugging Face
    writes them. Where there are several captions, the first counts. Without a uid column a record
    is known by the name of its row; a row whose uid occurred before is a bad record.

    Args:
      source: the table, for messages.
      rows: of the table.
      columns: what to read.
      image_dir: folder that relative image paths start from.
      classes: names of the labels, which then are integers; None: the labels' values, sorted.
      templates: for `prompts.get`: sentences that make a caption of a class name, one chosen for
        each record by its uid; None: the captions of the table.
    """

    def __init__(
        self,
        source: str,
        rows: Rows,
        columns: Columns,
        *,
        image_dir: str,
        classes: Sequence[str] | None = None,
        templates: str | None = None,
    ):
        if not len(rows):
            raise UserError(f"{source}: holds no rows")
        if columns.caption is None and templates is None:
            templates = DEFAULT_TEMPLATES
        if templates is not None and columns.label is None:
            raise UserError(
                f"{source}: templates={templates!r} make captions from class names, and no column "
                "holds those; name it"
            )
        self._rows = rows
        self._columns = columns if templates is None else columns._replace(caption=None)
        self._image_dir = image_dir
        self._templates = None if templates is None else prompts.get(templates)
        self._numbered = classes is not None
        self.classes = tuple(classes or ())
        if columns.label is not None and not self._numbered:
            values = rows.column(columns.label)
            self.classes = tuple(sorted({_text(value) for value in values} - {""}))
            if not self.classes:
                raise UserError(f"{source}: no row has a value of {columns.label!r}")
        self._labels = {name: label for label, name in enumerate(self.classes)}
        self._repeated: frozenset[int] = frozenset()
        if columns.uid is not None:
            uids = (
                _text(value) or rows.name(index)
                for index, value in enumerate(rows.column(columns.uid))
            )
            self._repeated = frozenset(np.flatnonzero(ids.repeated(ids.ids128(uids))).tolist())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        uid, row = self._read(index, self._columns)
        label = self._label(uid, row)
        return Pair(uid, self._image(uid, row[self._columns.image]), self._caption(uid, row), label)

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without its image."""
        uid, row = self._read(index, self._columns[1:])
        return self._caption(uid, row)

    def uid(self, index: int) -> str:
        """Returns the uid of record `index` without its image."""
        try:
            return self._read(index, (self._columns.uid,))[0]
        except BadRecord as bad:
            return bad.uid

    def _read(self, index: int, columns: Sequence[str | None]) -> tuple[str, dict[str, Any]]:
        """Returns the uid of a record and values of its row."""
        index = checked(index, len(self))
        name = self._rows.name(index)
        wanted = list(dict.fromkeys(column for column in columns if column is not None))
        try:
            row = dict(zip(wanted, self._rows.read(index, wanted), strict=True)) if wanted else {}
        except RowError as error:
            raise BadRecord(name, str(error)) from None
        uid = _text(row.get(self._columns.uid)) if self._columns.uid else ""
        if index in self._repeated:
            raise BadRecord(name, f"its uid {uid!r} occurs before")
        return uid or name, row

    def _image(self, uid: str, value: Any) -> bytes:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str):
            kind = "" if value in (None, b"") else f", but {type(value).__name__}"
            raise BadRecord(uid, f"no image in {self._columns.image!r}{kind}")
        value = value.strip()
        if not value:
            raise BadRecord(uid, f"no image in {self._columns.image!r}")
        try:
            return _load(os.path.join(self._image_dir, value) if "://" not in value else value)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadRecord(uid, f"no image file {value}: {reason}") from None

    def _caption(self, uid: str, row: dict[str, Any]) -> str:
        if self._templates is not None:
            label = self._label(uid, row)
            if label < 0:
                raise BadRecord(uid, "no label to make a caption from")
            template = self._templates[zlib.crc32(uid.encode()) % len(self._templates)]
            return prompts.fill(template, self.classes[label].replace("_", " "))
        value = row[self._columns.caption or ""]
        if isinstance(value, list | tuple):
            value = next(filter(None, value), None)
        try:
            caption = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise BadRecord(uid, f"the caption is not UTF-8 (at byte {error.start})") from None
        if not isinstance(caption, str) or not caption.strip():
            raise BadRecord(uid, f"no caption in {self._columns.caption!r}")
        return caption.strip()

    def _label(self, uid: str, row: dict[str, Any]) -> int:
        value = row.get(self._columns.label) if self._columns.label else None
        if self._numbered:
            if value is None or value == -1:
                return -1
            if not isinstance(value, int) or not 0 <= value < len(self.classes):
                raise BadRecord(uid, f"label {value!r}: expected 0 to {len(self.classes) - 1}")
            return value
        return self._labels.get(_text(value), -1)


def _load(location: str) -> bytes:
    if location.startswith(("http://", "https://")):
        raise ValueError("a web address; download the images first, as with img2dataset")
    if remote.is_url(location):
        return remote.read(location)
    with open(remote.local(location), "rb") as file:
        return file.read()


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return "" if value is None else str(value).strip()

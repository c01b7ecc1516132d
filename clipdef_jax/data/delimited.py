"""CSV and TSV files: rows found in one pass, then read at random; only their offsets are kept."""

from __future__ import annotations

import csv
import functools
import mmap
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from clipdef_jax.data import paths, remote, stored
from clipdef_jax.data.table import RowError, Rows, Table, choose
from clipdef_jax.errors import UserError

_CHUNK = 1 << 26  # Bytes looked at in one go for line ends.
_BLOCK = 10_000  # Rows read in one go where all are.
_LONGEST_ROW = 1 << 16  # Bytes; a quote that is not closed within them is taken for a stray one.
_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\r\n][^,\r\n]*+|)'
_ROW = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+(?=\r?\n|\Z)")
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_BOM = b"\xef\xbb\xbf"


def open_delimited(
    scheme: str,
    delimiter: str,
    *,
    spec: str,
    image_column: str | int | None = None,
    caption_column: str | int | None = None,
    label_column: str | int | None = None,
    uid_column: str | int | None = None,
    header: bool | None = None,
    image_dir: str | None = None,
    templates: str | None = None,
) -> Table:
    """Opens a CSV or TSV file of image paths and captions, in UTF-8.

    In a TSV a row is a line, and a quote is a character like any other unless it encloses the whole
    field. In a CSV a quoted field may hold commas and line breaks; a quote that is never closed
    costs its own line only.

    Args:
      scheme: "csv" or "tsv", for messages.
      delimiter: "," or a tab.
      spec: path or URL of the file.
      image_column: name or position, from 0, of the column of image paths; None for a usual name:
        image, filepath, path, file_name, url, ...
      caption_column: the same for captions: caption, title, text, ...
      label_column: column of class names; None for none.
      uid_column: column of unique identifiers; None for "uid" if there is one.
      header: whether the first line names the columns; None: it does unless one of its fields ends
        like an image file. Without a header columns go by position; the image's is found by its
        ending, and the other one of two is the caption, so CC3M's files need no options.
      image_dir: folder that relative paths start from; None for the file's own.
      templates: makes captions from class names; see `Table`.

    Raises:
      UserError: the file cannot be read, is empty or no UTF-8, or lacks a column.
    """
    source = f"source '{scheme}:{spec}'"
    files = paths.find(scheme, spec, f".{scheme}")
    if len(files) > 1:
        raise UserError(f"{source}: names {len(files)} files; join several as 'csv:A + csv:B'")
    try:
        rows = Delimited(source, remote.local(files[0]), delimiter, header)
    except OSError as error:
        raise UserError(f"{source}: {stored.explain(error)}") from None
    if rows.guessed is not None:
        guessed_image, guessed_caption = rows.guessed
        image_column = guessed_image if image_column is None else image_column
        caption_column = guessed_caption if caption_column is None else caption_column
    columns = choose(
        source,
        rows.columns,
        image=image_column,
        caption=caption_column,
        label=label_column,
        uid=uid_column,
    )
    folder = os.path.dirname(files[0]) if image_dir is None else os.path.expanduser(image_dir)
    return Table(source, rows, columns, image_dir=folder, templates=templates)


open_csv = functools.partial(open_delimited, "csv", ",")
open_tsv = functools.partial(open_delimited, "tsv", "\t")


class Delimited(Rows):
    """The rows of a CSV or TSV file; blank lines are none.

    Args:
      source: for messages.
      path: of the file.
      delimiter: "," or a tab.
      header: whether the first line names the columns; None to decide by its fields.

    Attributes:
      guessed: without a header, the positions of image and caption where they can be told.

    Raises:
      UserError: the file is empty or no text in UTF-8.
    """

    def __init__(self, source: str, path: str, delimiter: str, header: bool | None):
        self._file = stored.locate(path)
        self._delimiter = delimiter
        self._stem = pathlib.PurePath(path).stem
        if not self._file.size:
            raise UserError(f"{source}: the file is empty")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            begin = _begin_of_text(source, content[:4])
            starts, ends, quotes = _lines(content, begin)
            if not len(starts):
                raise UserError(f"{source}: the file is empty")
            if delimiter == ",":
                starts, ends = _join_quoted(content, starts, ends, quotes)
            head = content[int(starts[0]) : int(ends[0])]
        self._starts, self._sizes = starts, (ends - starts).astype(np.int32)
        try:
            first = _split(head, delimiter)
        except RowError as error:
            raise UserError(f"{source}: the first line: {error}") from None
        images = [i for i, field in enumerate(first) if _IMAGE_FILE.search(field.strip())]
        self.guessed: tuple[int | None, int | None] | None = None
        if header is None:
            header = not images
        if header:
            self.columns = tuple(field.strip() for field in first)
            self._starts, self._sizes = self._starts[1:], self._sizes[1:]
        else:
            self.columns = tuple(str(position) for position in range(len(first)))
            image = images[0] if len(images) == 1 else None
            other = 1 - image if image is not None and len(first) == 2 else None
            self.guessed = image, other
        if len(self.columns) == 1:
            for separator, what, scheme in (("\t", "tabs", "tsv"), (",", "commas", "csv")):
                if separator in first[0]:
                    raise UserError(
                        f"{source}: its fields are separated by {what}; open it with {scheme}:"
                    )
        self._positions = {name: i for i, name in reversed([*enumerate(self.columns)])}

    def __len__(self) -> int:
        return len(self._starts)

    def name(self, index: int) -> str:
        """Returns "FILE/ROW", rows counted from 0 after the header."""
        return f"{self._stem}/{index:07d}"

    def read(self, index: int, columns: Sequence[str]) -> list[str]:
        """Returns these values of a row."""
        start, size = int(self._starts[index]), int(self._sizes[index])
        try:
            row = stored.read(self._file, start, size)
        except OSError as error:
            raise RowError(stored.explain(error)) from None
        fields = self._fields(row)
        return [fields[self._positions[column]] for column in columns]

    def column(self, name: str) -> Iterator[str | None]:
        """Yields this value of every row, None where the row is damaged."""
        position = self._positions[name]
        for first in range(0, len(self), _BLOCK):
            starts = self._starts[first : first + _BLOCK]
            ends = starts + self._sizes[first : first + _BLOCK]
            begin = int(starts[0])
            try:
                block = stored.read(self._file, begin, int(ends[-1]) - begin)
            except OSError:
                yield from (None for _ in starts)
                continue
            for start, end in zip((starts - begin).tolist(), (ends - begin).tolist(), strict=True):
                try:
                    yield self._fields(block[start:end])[position]
                except RowError:
                    yield None

    def _fields(self, row: bytes) -> list[str]:
        fields = _split(row, self._delimiter)
        if len(fields) != len(self.columns):
            raise RowError(f"has {len(fields)} fields, expected {len(self.columns)}")
        return fields


def _split(row: bytes, delimiter: str) -> list[str]:
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"0x{error.object[error.start]:02x} at byte {error.start}"
        raise RowError(f"the row is not UTF-8 ({found})") from None
    if delimiter == "\t":
        return [_unquote(field) for field in text.split("\t")]
    try:
        return next(csv.reader((text,), strict=True))
    except csv.Error as error:
        raise RowError(f"the row has a stray quote, or is damaged: {error}") from None


def _begin_of_text(source: str, first: bytes) -> int:
    for mark, what in (
        ((b"\xff\xfe", b"\xfe\xff"), "UTF-16; save it as UTF-8"),
        (b"\x1f\x8b", "compressed by gzip; unpack it"),
        (b"PK\x03\x04", "a zip archive or spreadsheet; save it as text"),
        (b"PAR1", "a Parquet file; open it with parquet:"),
    ):
        if first.startswith(mark):
            raise UserError(f"{source}: the file is {what}")
    return len(_BOM) if first.startswith(_BOM) else 0


def _lines(content: mmap.mmap, begin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns begins and ends (n,) of the lines that are not blank, and the positions of quotes."""
    breaks, quotes, returned = [], [], []
    for offset in range(begin, len(content), _CHUNK):
        # One byte more to the left, to see a carriage return before a line break.
        left = max(offset - 1, 0)
        chunk = np.frombuffer(content[left : offset + _CHUNK], np.uint8)
        found = np.flatnonzero(chunk[offset - left :] == ord("\n"))
        breaks.append(found + offset)
        returned.append(chunk[np.maximum(found + offset - left - 1, 0)] == ord("\r"))
        quotes.append(np.flatnonzero(chunk[offset - left :] == ord('"')) + offset)
    last = np.concatenate(breaks)
    starts = np.concatenate([[begin], last + 1])
    ends = np.concatenate([last - np.concatenate(returned), [len(content)]])
    filled = ends > starts
    return starts[filled], ends[filled], np.concatenate(quotes)


def _join_quoted(
    content: mmap.mmap, starts: np.ndarray, ends: np.ndarray, quotes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Joins the lines that a quoted field goes over; a line with a stray quote stays alone."""
    kept = np.ones(len(starts), bool)
    joined = ends.copy()
    done = -1
    for line in _with_uncommon_quotes(content, starts, ends, quotes).tolist():
        start, end = int(starts[line]), int(ends[line])
        if line <= done or _ROW.fullmatch(content, start, end):
            continue
        limit = min(start + _LONGEST_ROW, len(content))
        match = _ROW.match(content, start, limit)
        if match is None or match.end() == limit < len(content):
            continue
        # Two stray quotes may enclose lines as one closed quote does, but hardly at a field's ends.
        if line and _count(match[0]) != _count(content[int(starts[0]) : int(joined[0])]):
            continue
        done = int(np.searchsorted(ends, match.end()))
        joined[line] = match.end()
        kept[line + 1 : done + 1] = False
    return starts[kept], joined[kept]


def _with_uncommon_quotes(
    content: mmap.mmap, starts: np.ndarray, ends: np.ndarray, quotes: np.ndarray
) -> np.ndarray:
    """Returns the lines, ascending, with quotes other than pairs that enclose a field."""
    line = np.searchsorted(starts, quotes, side="right") - 1
    count = np.bincount(line, minlength=len(starts))
    nth = np.arange(len(quotes)) - np.repeat(np.cumsum(count) - count, count)
    characters = np.frombuffer(content, np.uint8)
    comma = ord(",")
    opens = (quotes == starts[line]) | (characters[np.maximum(quotes - 1, 0)] == comma)
    follower = characters[np.minimum(quotes + 1, len(characters) - 1)]
    closes = (quotes + 1 == ends[line]) | (follower == comma)
    del characters  # It would keep the file from being closed.
    uncommon = np.where(nth % 2, ~closes, ~opens)
    return np.union1d(line[uncommon], np.flatnonzero(count % 2))


def _count(row: bytes) -> int:
    return len(next(csv.reader([row.decode("utf-8", "replace")])))


def _unquote(field: str) -> str:
    inner = field[1:-1]
    enclosed = len(field) >= 2 and field[0] == field[-1] == '"'
    return inner.replace('""', '"') if enclosed and '"' not in inner.replace('""', "") else field

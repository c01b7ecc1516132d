"""Parquet files: images as bytes or by path, read at random by row group."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipdef_jax.data import paths, remote, stored
from clipdef_jax.data.table import RowError, Rows, Table, choose
from clipdef_jax.errors import UserError

_CACHED = 1 << 28  # Bytes of row groups that a process keeps.
_LARGEST_GROUP = 1 << 30  # Bytes; a larger row group is refused, since it is read as a whole.


def open_parquet(
    spec: str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    uid_column: str | None = None,
    image_dir: str | None = None,
    templates: str | None = None,
) -> Table:
    """Opens Parquet files of images, as bytes or by path, and captions.

    A record needs its whole row group: write small ones, as pyarrow does with `row_group_size=100`.

    Args:
      spec: path or URL of the files, with brace ranges "{00000..00009}", lists and wildcards.
      image_column: encoded images, their paths, or Hugging Face's {bytes, path}; None for a usual
        name: image, jpg, filepath, url, ...
      caption_column: captions, or lists of them; None for a usual name: caption, text, ...
      label_column: classes: names, or numbers with their names in Hugging Face's metadata.
      uid_column: unique identifiers; None for "uid" if there is one.
      image_dir: folder that relative paths start from; None for that of the first file.
      templates: makes captions from class names; see `Table`.

    Raises:
      UserError: a file is missing, damaged or unlike the first one, or lacks a column.
    """
    source = f"source 'parquet:{spec}'"
    files = paths.find("parquet", spec, ".parquet")
    rows = Parquet(source, [remote.local(file) for file in files], paths.short_names(files))
    columns = choose(
        source,
        rows.columns,
        image=image_column,
        caption=caption_column,
        label=label_column,
        uid=uid_column,
    )
    rows.check(source, columns.image)
    folder = os.path.dirname(files[0]) if image_dir is None else os.path.expanduser(image_dir)
    return Table(
        source,
        rows,
        columns,
        image_dir=folder,
        classes=rows.class_names(columns.label),
        templates=templates,
    )


class Parquet(Rows):
    """The rows of Parquet files of one schema.

    Args:
      source: for messages.
      files: paths.
      names: of the files, in the rows' names.

    Raises:
      UserError: a file is damaged, or its columns are not those of the first one.
    """

    def __init__(self, source: str, files: Sequence[str], names: Sequence[str]):
        self._files: list[stored.StoredFile] = []
        self._names = list(names)
        counts, places = [], []
        for number, file in enumerate(files):
            try:
                self._files.append(stored.locate(file))
                opened = pq.ParquetFile(file)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{source}: {file}: {_brief(error)}") from None
            with opened:
                schema = opened.schema_arrow
                if not number:
                    self.columns = tuple(schema.names)
                    self._metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
                elif set(schema.names) != set(self.columns):
                    raise UserError(
                        f"{source}: {file} has the columns {', '.join(schema.names)}, the first "
                        f"file {', '.join(self.columns)}"
                    )
                for group in range(opened.metadata.num_row_groups):
                    counts.append(opened.metadata.row_group(group).num_rows)
                    places.append((number, group))
        self._starts = np.cumsum([0, *counts])
        self._places = np.array(places, np.int32).reshape(-1, 2)
        # Rows are named by their position in their file.
        of_file = self._places[:, 0]
        self._file_starts = self._starts[np.searchsorted(of_file, np.arange(len(files)))]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def check(self, source: str, column: str) -> None:
        """Checks that the images of a row group fit into memory.

        Raises:
          UserError: they do not.
        """
        for file in self._files:
            metadata = _open(file).metadata
            for group in range(metadata.num_row_groups):
                chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
                size = sum(
                    chunk.total_uncompressed_size
                    for chunk in chunks
                    if chunk.path_in_schema.partition(".")[0] == column
                )
                if size > _LARGEST_GROUP:
                    raise UserError(
                        f"{source}: row group {group} of {file.path} holds "
                        f"{size / 2**30:.1f} GiB of {column!r}, which every access would "
                        "read; write the file anew with "
                        "pyarrow.parquet.write_table(table, path, row_group_size=100)"
                    )

    def class_names(self, column: str | None) -> list[str] | None:
        """Returns the names of a column's numbers where Hugging Face's metadata has them."""
        with contextlib.suppress(ValueError, LookupError, TypeError):
            names = json.loads(self._metadata)["info"]["features"][column]["names"]
            return [str(name) for name in names]
        return None

    def name(self, index: int) -> str:
        """Returns "FILE/ROW", rows counted from 0."""
        file = int(self._places[self._group(index), 0])
        return f"{self._names[file]}/{index - int(self._file_starts[file]):07d}"

    def read(self, index: int, columns: Sequence[str]) -> list[Any]:
        """Returns these values of a row."""
        group = self._group(index)
        file, number = self._places[group].tolist()
        try:
            table = _cache.get(self._files[file], number, tuple(columns))
        except (pa.ArrowException, OSError) as error:
            path = self._files[file].path
            raise RowError(f"{path}, row group {number}: {_brief(error)}") from None
        row = index - int(self._starts[group])
        try:
            return [table.column(column)[row].as_py() for column in columns]
        except UnicodeDecodeError as error:
            raise RowError(f"a text is not UTF-8 (at byte {error.start})") from None

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


class _Cache:
    """The row groups read last, up to a number of bytes."""

    def __init__(self, limit: int):
        self._limit = limit
        self._size = 0
        self._tables: OrderedDict[tuple[stored.StoredFile, int, tuple[str, ...]], pa.Table] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, file: stored.StoredFile, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = file, group, columns
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
            if stored.locate(file.path) != file:
                raise OSError("the file changed since it was opened")
            table = _open(file).read_row_group(group, columns=list(columns), use_threads=False)
            self._tables[key] = table
            self._size += table.nbytes
            while self._size > self._limit and len(self._tables) > 1:
                self._size -= self._tables.popitem(last=False)[1].nbytes
        return table


@functools.lru_cache(maxsize=64)
def _open(file: stored.StoredFile) -> pq.ParquetFile:
    return pq.ParquetFile(file.path)


# One per process, whatever sources there are: sources themselves hold none, and so pickle.
_cache = _Cache(_CACHED)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())

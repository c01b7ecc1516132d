"""Embeddings on disk as clip-retrieval lays them out: read where they lie, written by shards.

A folder holds `img_emb/*.npy`, `text_emb/*.npy` and `metadata/*.parquet`: files of one number
belong together and have a row for each pair.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdef_jax.data import ids, stored
from clipdef_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Columns of the metadata that may name a pair, the best first; "key" is img2dataset's.
_UID_COLUMNS = ("uid", "key", "image_path")
# Rows checked at once.
_BLOCK = 65_536


class Stacked:
    """Arrays of the same columns one after the other, as one array that stays where it is.

    Args:
      arrays: (n, D) each, memory-mapped mostly; at least one.
    """

    ndim = 2

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = tuple(arrays)
        self._starts = np.cumsum([0, *map(len, arrays)])
        self.shape = int(self._starts[-1]), arrays[0].shape[1]
        self.dtype = np.result_type(*arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns rows: a slice, or an array of indices from 0 on."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._between(start, max(start, stop))
            rows = np.arange(start, stop, step)
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        number = np.searchsorted(self._starts, rows, side="right") - 1
        for array in np.unique(number):
            here = number == array
            taken[here] = self._arrays[array][rows[here] - self._starts[array]]
        return taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _between(self, start: int, stop: int) -> np.ndarray:
        parts = [
            array[max(start - first, 0) : max(stop - first, 0)]
            for array, first in zip(self._arrays, self._starts, strict=False)
            if start < first + len(array) and stop > first
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, self.shape[1]), self.dtype), *parts])


class Embeddings:
    """The embeddings of a folder.

    Args:
      folder: as clip-retrieval, or `write_shard`, leaves it. Captions and metadata may be missing.

    Attributes:
      image: (N, D) floating point, the pairs in the order of the files' numbers.
      text: the same of the captions, or None.
      starts: (files + 1,) first pair of each file, and N.

    Raises:
      UserError: there are no embeddings, or files that do not fit one another.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        files = _files(folder / "img_emb", ".npy")
        if not files:
            raise UserError(
                f"{folder} holds no img_emb/*.npy; expected a folder of embeddings as "
                "clip-retrieval's inference leaves it"
            )
        images = [_load(file) for file in files]
        self._check_widths(files, images)
        self.image = Stacked(images)
        self.starts = np.cumsum([0, *map(len, images)])
        if not len(self.image):
            raise UserError(f"{folder}: the embeddings are empty; expected at least one row")
        self.text = self._texts(files, images)
        self._metadata = _files(folder / "metadata", ".parquet")
        self._check_metadata(files)

    def __len__(self) -> int:
        return len(self.image)

    def column(self, name: str) -> pa.ChunkedArray | None:
        """Returns a column of the metadata, (N,), or None if there is none."""
        import pyarrow as pa
        from pyarrow import parquet

        if not self._metadata or name not in parquet.read_schema(self._metadata[0]).names:
            return None
        try:
            parts = [parquet.read_table(file, columns=[name]) for file in self._metadata]
            # A file may hold nothing but nulls, of no type.
            return pa.concat_tables(parts, promote_options="permissive").column(name)
        except (KeyError, pa.ArrowException) as error:
            raise UserError(
                f"{self._folder}/metadata: column {name!r} cannot be read: {error}"
            ) from None

    @functools.cached_property
    def uids(self) -> pa.ChunkedArray:
        """The uid of each pair: of the first usual column whose values differ, or "FILE/ROW"."""
        import pyarrow as pa

        for name in _UID_COLUMNS:
            column = self.column(name)
            if column is not None and not column.null_count:
                column = column.cast(pa.string())
                if not ids.repeated(ids.ids128(_texts(column))).any():
                    return column
        places = zip(self.starts[:-1], self.starts[1:], strict=True)
        names = [f"{file}/{row:06d}" for file, (a, b) in enumerate(places) for row in range(b - a)]
        return pa.chunked_array([names])

    @functools.cached_property
    def captions(self) -> pa.ChunkedArray:
        """The caption of each pair, empty where it is not known."""
        import pyarrow as pa

        column = self.column("caption")
        if column is None:
            return pa.chunked_array([pa.repeat("", len(self))])
        return column.cast(pa.string()).fill_null("")

    def check_finite(self) -> None:
        """Raises `UserError` if an embedding is not finite; reads them all once."""
        for name, array in (("img_emb", self.image), ("text_emb", self.text)):
            for start in range(0, len(self) if array is not None else 0, _BLOCK):
                assert array is not None
                bad = ~np.isfinite(array[start : start + _BLOCK]).all(axis=1)
                if bad.any():
                    row = start + int(np.argmax(bad))
                    file = int(np.searchsorted(self.starts, row, side="right")) - 1
                    raise UserError(
                        f"{self._folder}/{name}: row {row - self.starts[file]} of file {file} "
                        f"(pair {self.uids[row].as_py()!r}) is not finite; leave such pairs out, "
                        "or encode them again in float32"
                    )

    def digest(self) -> str:
        """Returns what tells these embeddings from others: of their shape and some of their rows.

        Not of all rows: it is there to notice that a folder was replaced, not to prove anything.
        """
        import hashlib

        sample = np.linspace(0, len(self) - 1, 64).astype(np.int64)
        found = hashlib.sha256(repr((self.starts.tolist(), self.image.shape)).encode())
        for array in (self.image, self.text):
            if array is not None:
                found.update(np.ascontiguousarray(array[sample]).tobytes())
        return found.hexdigest()[:16]

    def _texts(self, files: list[pathlib.Path], images: list[np.ndarray]) -> Stacked | None:
        text_files = _files(self._folder / "text_emb", ".npy")
        if not text_files:
            return None
        self._check_count("text_emb", len(text_files), len(files))
        texts = [_load(file) for file in text_files]
        for file, text, image in zip(text_files, texts, images, strict=True):
            if text.shape != image.shape:
                raise UserError(
                    f"{file} is {text.shape}, the image embeddings of the same number are "
                    f"{image.shape}: expected a caption's embedding for each image, from the same "
                    "model"
                )
        return Stacked(texts)

    def _check_widths(self, files: list[pathlib.Path], images: list[np.ndarray]) -> None:
        for file, array in zip(files, images, strict=True):
            if array.shape[1] != images[0].shape[1]:
                raise UserError(
                    f"{file} has {array.shape[1]} dimensions, {files[0]} {images[0].shape[1]}: "
                    "these are embeddings of different models"
                )

    def _check_metadata(self, files: list[pathlib.Path]) -> None:
        from pyarrow import lib, parquet

        if not self._metadata:
            return
        self._check_count("metadata", len(self._metadata), len(files))
        for file, image_file, count in zip(
            self._metadata, files, np.diff(self.starts), strict=True
        ):
            try:
                rows = parquet.read_metadata(file).num_rows
            except (OSError, lib.ArrowException) as error:
                raise UserError(f"{file} is damaged or no Parquet file: {error}") from None
            if rows != count:
                raise UserError(
                    f"{file} has {rows} rows, {image_file} {count}: expected one for each pair"
                )

    def _check_count(self, name: str, count: int, wanted: int) -> None:
        if count != wanted:
            raise UserError(
                f"{self._folder}: {wanted} files in img_emb, {count} in {name}; expected as many"
            )


def is_written(folder: pathlib.Path, number: int) -> bool:
    """Returns whether `write_shard` has finished this shard."""
    return _paths(folder, number)["metadata"].exists()


def write_shard(
    folder: pathlib.Path,
    number: int,
    image: np.ndarray,
    text: np.ndarray,
    metadata: Mapping[str, Sequence[Any]],
) -> None:
    """Writes the embeddings of some pairs; what was written of them before is replaced.

    Args:
      folder: of the embeddings; made if need be.
      number: of the shard.
      image: (n, D) floating point.
      text: (n, D).
      metadata: columns of n values: "uid" and "caption", text; and "index", the record, if known.

    Raises:
      UserError: an embedding is not finite, or the disk does not take the files.
    """
    import pyarrow as pa
    from pyarrow import parquet

    for name, array in (("image", image), ("caption", text)):
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            raise UserError(
                f"the {name} of {metadata['uid'][int(np.argmax(bad))]!r} has an embedding that is "
                f"not finite in {array.dtype}: the checkpoint is damaged, or needs "
                "--config.embed.dtype=float32 or --config.model.dtype=float32"
            )
    # Told, not guessed: a shard may have no rows.
    types = {name: pa.int64() if name == "index" else pa.string() for name in metadata}
    schema, paths = pa.schema(types), _paths(folder, number)
    try:
        for name, array in (("img_emb", image), ("text_emb", text)):
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            stored.save_array(paths[name], array)
        # The last one: where it is, the shard is whole.
        paths["metadata"].parent.mkdir(exist_ok=True)
        with stored.replacing(paths["metadata"]) as unfinished:
            parquet.write_table(pa.table(dict(metadata), schema=schema), unfinished)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None


def _paths(folder: pathlib.Path, number: int) -> dict[str, pathlib.Path]:
    endings = {"img_emb": "npy", "text_emb": "npy", "metadata": "parquet"}
    return {
        name: folder / name / f"{name}_{number:05d}.{ending}" for name, ending in endings.items()
    }


def _files(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    """Returns the files of a folder by the numbers in their names: 10 comes after 9."""

    def key(path: pathlib.Path) -> list[tuple[str, int]]:
        parts = re.findall(r"(\D*)(\d*)", path.stem)
        return [(text, int(number or 0)) for text, number in parts]

    return sorted(folder.glob(f"*{ending}"), key=key)


def _load(file: pathlib.Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{file} is damaged or no .npy file: {error}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(
            f"{file} holds {array.dtype} {array.shape}, expected floating point (pairs, dimensions)"
        )
    return array


def _texts(column: pa.ChunkedArray) -> Any:
    for chunk in column.chunks:
        yield from chunk.to_pylist()

"""ArrayRecord files of serialised tf.train.Example, the records that TFDS and grain users hold."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax.data import paths, remote
from clipdef_jax.data.table import RowError, Rows, Table, choose
from clipdef_jax.errors import UserError


def open_array_record(
    spec: str,
    *,
    image_field: str | None = None,
    caption_field: str | None = None,
    label_field: str | None = None,
    uid_field: str | None = None,
    templates: str | None = None,
) -> Table:
    """Opens ArrayRecord files whose records are serialised tf.train.Example messages.

    Args:
      spec: path or URL of the files, with brace ranges, lists and wildcards.
      image_field: feature with the encoded image; None for a usual name: image, jpg, ...
      caption_field: feature with the caption, the first where there are several; None for a usual
        name: caption, text, captions/text, ...
      label_field: feature with the class, as a name or a number; None for none.
      uid_field: feature with a unique identifier; None for "uid" if there is one.
      templates: makes captions from class names; see `Table`.

    Raises:
      UserError: a file is missing or damaged, holds something else, or lacks a field.
    """
    source = f"source 'array_record:{spec}'"
    files = paths.find("array_record", spec, ".array_record")
    pieces = [whole(source, remote.local(file)) for file in files]
    rows = Examples(source, pieces, paths.short_names(files))
    columns = choose(
        source,
        rows.columns,
        image=image_field,
        caption=caption_field,
        label=label_field,
        uid=uid_field,
        kind="field",
    )
    return Table(source, rows, columns, image_dir="", templates=templates)


class Piece(NamedTuple):
    """Records [skip, skip + take) of a file, which has `examples_in_shard` of them."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def whole(source: str, file: str) -> Piece:
    """Returns all records of a file.

    Raises:
      UserError: it is no ArrayRecord file.
    """
    try:
        count = len(_array_record().ArrayRecordDataSource([file]))
    except RuntimeError as error:
        raise UserError(f"{source}: {file} is damaged or no ArrayRecord file: {error}") from None
    return Piece(file, 0, count, count)


class Examples(Rows):
    """The records of pieces of ArrayRecord files; their columns are the features of the first one.

    Args:
      source: for messages.
      pieces: of the files; anything with the attributes of `Piece`.
      names: of the files, in the records' names.

    Raises:
      UserError: there is no record, or the first one cannot be read.
    """

    def __init__(self, source: str, pieces: Sequence[Piece], names: Sequence[str]):
        self._names = list(names)
        self._skips = [piece.skip for piece in pieces]
        self._starts = np.cumsum([0, *(piece.take for piece in pieces)])
        if not len(self):
            raise UserError(f"{source}: holds no records")
        self._records = _array_record().ArrayRecordDataSource(list(pieces))
        try:
            self.columns = tuple(sorted(self._features(0)))
        except RowError as error:
            raise UserError(f"{source}: record 0: {error}") from None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        """Returns "FILE/RECORD", records counted from 0."""
        piece = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._names[piece]}/{index - int(self._starts[piece]) + self._skips[piece]:07d}"

    def read(self, index: int, columns: Sequence[str]) -> list[Any]:
        """Returns these features of a record: a list where there is not exactly one value."""
        features = self._features(index)
        return [_value(features[column]) if column in features else None for column in columns]

    def _features(self, index: int) -> Any:
        try:
            record = self._records[index]
        except RuntimeError as error:
            raise RowError(f"the record is damaged: {' '.join(str(error).split())}") from None
        example, decode_error = _example()
        try:
            return example.FromString(record).features.feature
        except decode_error:
            raise RowError("the record is no tf.train.Example") from None


def _value(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else values


@functools.cache
def _example() -> tuple[Any, type[Exception]]:
    # TFDS brings the message along: it takes no TensorFlow to read one.
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example, DecodeError


def _array_record() -> Any:
    try:
        from array_record.python import array_record_data_source
    except ImportError:
        raise UserError(
            "reading ArrayRecord files needs array_record, which there is for Linux and macOS; "
            "pip install array_record"
        ) from None
    return array_record_data_source

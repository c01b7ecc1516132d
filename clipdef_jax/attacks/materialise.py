"""A source written out as webdataset tars, for tools that read nothing else."""

from __future__ import annotations

import io
import json
import os
import pathlib
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from clipdef_jax.data import decode, stored
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair, Source

# What files begin with that are kept as they are, and the endings that readers of tars know.
_KEPT = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))


def write_tars(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    records_per_tar: int = 10_000,
    on_skip: Callable[[str, str], None],
    on_record: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes `source` to `folder` as 00000.tar, 00001.tar, ..., as img2dataset lays them out.

    Record i is KEY.jpg or .png, KEY.txt and KEY.json with KEY the nine digits of i, in the tar of
    number i // records_per_tar. JPEG, PNG and WebP files are written byte for byte; pixels, and
    files of other formats, as PNG without loss. The JSON holds "uid", "caption" and, where the
    source has it, "label", the name of the class: `WebDataset(..., uid_field="uid")` reads the same
    pairs. A tar is there whole or not at all; one that is there already is not written again.

    Args:
      source: any.
      folder: where the tars go; made if need be.
      records_per_tar: records of the source to a tar.
      on_skip: called with uid and reason of every record left out; its key stays free.
      on_record: called with the number of records done, those of tars already there included.

    Raises:
      UserError: `records_per_tar` is no positive number, or the disk does not take the tars.
    """
    if records_per_tar < 1:
        raise UserError(f"records_per_tar is {records_per_tar}, expected 1 or more")
    folder = pathlib.Path(folder)
    for number, first in enumerate(range(0, len(source), records_per_tar)):
        path = folder / f"{number:05d}.tar"
        indices = range(first, min(first + records_per_tar, len(source)))
        if path.exists():
            on_record(indices.stop)
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with stored.replacing(path) as unfinished, unfinished.open("wb") as file:
                _write_tar(file, source, indices, on_skip, on_record)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _write_tar(
    file: io.BufferedWriter,
    source: Source,
    indices: range,
    on_skip: Callable[[str, str], None],
    on_record: Callable[[int], None],
) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            try:
                # All of a record before any of it: a bad one leaves nothing behind.
                members = _members(source[index], source.classes)
            except BadRecord as bad:
                on_skip(bad.uid, bad.reason)
            else:
                for ending, content in members.items():
                    # Without times and owners the same records make the same bytes.
                    info = tarfile.TarInfo(f"{index:09d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            on_record(index + 1)


def _members(pair: Pair, classes: tuple[str, ...]) -> dict[str, bytes]:
    ending, image = _encoded(pair)
    try:
        caption = pair.caption.encode()
    except UnicodeEncodeError:
        raise BadRecord(pair.uid, "the caption cannot be written as UTF-8") from None
    fields = {"uid": pair.uid, "caption": pair.caption}
    if pair.label >= 0:
        fields["label"] = classes[pair.label]
    return {ending: image, "txt": caption, "json": json.dumps(fields).encode()}


def _encoded(pair: Pair) -> tuple[str, bytes]:
    if isinstance(pair.image, bytes):
        for start, ending in _KEPT:
            if pair.image.startswith(start):
                return ending, pair.image
        if pair.image[:4] == b"RIFF" and pair.image[8:12] == b"WEBP":
            return "webp", pair.image
    try:
        pixels = decode.decode(pair.image)
    except decode.DecodeError as error:
        raise BadRecord(pair.uid, str(error)) from None
    return "png", _png(pixels)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    # The fastest level that still packs flat colours: noise does not shrink at any.
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()

"""Folders of pictures: one folder a class, or a caption beside each picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipdef_jax.data import remote
from clipdef_jax.data.table import Columns, RowError, Rows, Table
from clipdef_jax.errors import UserError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def open_folder(spec: str, *, templates: str | None = None) -> Table:
    """Opens the pictures in a folder and the folders within, in the order of their paths.

    Where any picture has a caption beside it, PICTURE.txt for PICTURE.jpg, every caption is read
    from there. Where none has, the folders directly within are the classes, and captions are made
    from their names. A record's uid is the picture's path within the folder.

    Args:
      spec: path of the folder.
      templates: makes captions from class names; see `Table`.

    Raises:
      UserError: there is no such folder, or it holds no pictures or no captions nor classes.
    """
    source = f"source 'folder:{spec}'"
    if remote.is_url(spec):
        raise UserError(f"{source}: reads folders of this machine only; copy the pictures here")
    folder = os.path.abspath(os.path.expanduser(remote.local(spec)))
    if not os.path.isdir(folder):
        raise UserError(f"{source}: there is no folder {folder}")
    files = sorted(_walk(folder, ""))
    pictures = [file for file in files if file.lower().endswith(_ENDINGS)]
    if not pictures:
        raise UserError(f"{source}: {folder} holds no pictures ({', '.join(_ENDINGS)})")
    texts = {file for file in files if file.endswith(".txt")}
    captioned = any(_caption_file(picture) in texts for picture in pictures)
    if captioned and templates is None:
        columns, classes = Columns("image", "caption", None, None), None
    else:
        columns = Columns("image", None, "label", None)
        classes = sorted({picture.split("/")[0] for picture in pictures if "/" in picture})
        if not classes:
            raise UserError(
                f"{source}: {folder} holds neither captions (PICTURE.txt beside PICTURE.jpg) nor "
                "class folders to make captions from"
            )
    rows = Pictures(folder, pictures, classes or ())
    return Table(source, rows, columns, image_dir=folder, classes=classes, templates=templates)


class Pictures(Rows):
    """The pictures of a folder as rows: the path, the text beside it, the folder it is in.

    Args:
      folder: holds the pictures.
      pictures: their paths within it, with "/" between the parts.
      classes: names of the folders that are classes.
    """

    columns = ("image", "caption", "label")

    def __init__(self, folder: str, pictures: Sequence[str], classes: Sequence[str]):
        self._folder = folder
        # Packed: a million paths as Python strings would take four times the room.
        self._pictures = np.array(pictures, np.dtypes.StringDType())
        self._classes = {name: label for label, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        """Returns the path of a picture within the folder."""
        return str(self._pictures[index])

    def read(self, index: int, columns: Sequence[str]) -> list[Any]:
        """Returns these of a picture's path, caption and label."""
        picture = self.name(index)
        values: dict[str, Any] = {"image": picture}
        if "caption" in columns:
            values["caption"] = self._caption(picture)
        if "label" in columns:
            values["label"] = self._classes.get(picture.split("/")[0], -1)
        return [values[column] for column in columns]

    def _caption(self, picture: str) -> bytes:
        file = _caption_file(picture)
        try:
            with open(os.path.join(self._folder, file), "rb") as opened:
                return opened.read()
        except OSError as error:
            raise RowError(f"no caption {file}: {error.strerror}") from None


def _caption_file(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"


def _walk(folder: str, inner: str) -> Iterator[str]:
    """Yields the files within, hidden ones left out, by their path from the first folder on."""
    with os.scandir(os.path.join(folder, inner)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = inner + entry.name
            if entry.is_dir():
                yield from _walk(folder, path + "/")
            else:
                yield path

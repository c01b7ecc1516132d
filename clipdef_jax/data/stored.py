"""Files read at random, from any thread; one that changes under the reader is noticed."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class StoredFile(NamedTuple):
    """A file as it was when it was indexed; size in bytes, time of its last change in ns."""

    path: str
    size: int
    mtime_ns: int


def locate(path: str) -> StoredFile:
    """Returns a file as it is now."""
    status = os.stat(path)
    return StoredFile(path, status.st_size, status.st_mtime_ns)


def read(file: StoredFile, offset: int, size: int) -> bytes:
    """Returns `size` bytes of a file; safe with threads.

    Raises:
      OSError: it cannot be read, or has changed since.
    """
    return opened(file).read(offset, size)


class Descriptor:
    """An open file that closes itself once nobody reads from it any more."""

    def __init__(self, file: StoredFile):
        self.number = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.number)
        self._path = file.path
        if (status.st_size, status.st_mtime_ns) != file[1:]:
            raise self._changed()

    # Bound here: when the interpreter ends, this may run after `os` is gone.
    def __del__(self, close=os.close):
        if hasattr(self, "number"):
            close(self.number)

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` on."""
        data = os.pread(self.number, size, offset)
        if len(data) < size:
            raise self._changed()
        return data

    def _changed(self) -> OSError:
        return OSError(errno.ESTALE, "changed since it was indexed", self._path)


# One set of open files per process, whatever sources there are: sources themselves hold none, and
# so pickle. `os.pread` has no position that threads could move under each other.
opened = functools.lru_cache(maxsize=256)(Descriptor)


def explain(error: OSError) -> str:
    """Returns one line that says which file, if any, and what is wrong with it."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where to write what is to be at `path`: it gets there whole, or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        # The disk may be gone, and that is the error to be seen.
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def save_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes an array as `np.save` does, whole or not at all."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array)


def user_cache(part: str) -> pathlib.Path:
    """Returns this package's folder for `part` in the user's cache folder; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "clipdef_jax" / part

"""Lists of records to keep, as files: by uid, or by the 128-bit ids that DataComp's tools exchange.

A uid of 32 hexadecimal digits, as DataComp gives to its records, is its own id. Any other one has
the BLAKE2b hash of its UTF-8 bytes, 16 bytes long. An id is a pair of uint64, the high half first;
a list on disk is a sorted `.npy` of them, or a text file with one uid a line.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from clipdef_jax.data import stored
from clipdef_jax.errors import UserError

ID = np.dtype("u8,u8")
"""DataComp's dtype of an id."""

_HEX = re.compile(r"[0-9a-fA-F]{32}")


def ids128(uids: Iterable[str]) -> np.ndarray:
    """Returns the 128-bit ids of `uids`, in their order.

    >>> ids128(["000000000000000a000000000000000b"]).tolist()
    [(10, 11)]

    Args:
      uids: n of them.

    Returns:
      (n,) of dtype `ID`.
    """
    digits = bytearray()
    for uid in uids:
        digits += _id(uid)
    return np.frombuffer(digits, ">u8,>u8").astype(ID)


def _id(uid: str) -> bytes:
    if _HEX.fullmatch(uid):
        return bytes.fromhex(uid)
    return hashlib.blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def contained(ids: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Returns which of `ids` are among `listed`.

    Args:
      ids: (n,) of dtype `ID`.
      listed: (m,) of dtype `ID`, in any order.

    Returns:
      bool (n,).
    """
    group = _groups(np.concatenate([listed, ids]))
    present = np.zeros(len(group), bool)
    present[group[: len(listed)]] = True
    return present[group[len(listed) :]]


def repeated(ids: np.ndarray) -> np.ndarray:
    """Returns which of `ids` occurred before, bool (n,), for ids (n,) of dtype `ID`."""
    later = np.ones(len(ids), bool)
    later[np.unique(_groups(ids), return_index=True)[1]] = False
    return later


def write_ids(path: str | os.PathLike[str], uids: Iterable[str]) -> None:
    """Writes a list of records, whole or not at all.

    Args:
      path: ending in ".npy" for ids, sorted, each once; else for text, in the order given.
      uids: of the records.

    Raises:
      UserError: a uid has a line break, which text cannot hold.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with stored.replacing(path) as unfinished:
        if path.suffix == ".npy":
            with unfinished.open("wb") as file:
                np.save(file, _sorted(ids128(uids)))
        else:
            lines = list(uids)
            for uid in lines:
                if len(uid.splitlines()) != 1 or uid != uid.strip():
                    raise UserError(
                        f"list {path}: the uid {uid!r} does not fit a line of text; write a .npy"
                    )
            unfinished.write_text("".join(f"{uid}\n" for uid in lines), encoding="utf-8")


def read_ids(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the ids of a list, sorted, each once.

    Args:
      path: ".npy" of dtype u8,u8 as DataComp's; or UTF-8 text with one uid a line.

    Returns:
      (n,) of dtype `ID`.

    Raises:
      UserError: no such file, an empty one, or something else.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == ".npy":
            ids = np.load(path, allow_pickle=False)
            if ids.dtype != ID or ids.ndim != 1:
                raise UserError(
                    f"list {path}: holds {ids.dtype} {ids.shape}, expected pairs of uint64 (n,), "
                    "dtype u8,u8, as clipdef_jax.data.ids.write_ids writes them"
                )
        else:
            lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
            ids = ids128(line for line in lines if line)
    except OSError as error:
        raise UserError(f"list {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(
            f"list {path}: neither UTF-8 text with one uid a line, nor named .npy"
        ) from None
    except (ValueError, EOFError):
        raise UserError(f"list {path}: the .npy is damaged, or holds Python objects") from None
    if not len(ids):
        raise UserError(f"list {path}: names no record")
    return _sorted(ids)


def _sorted(ids: np.ndarray) -> np.ndarray:
    ids = ids[np.lexsort((ids["f1"], ids["f0"]))]
    return ids[np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)]]


def _groups(ids: np.ndarray) -> np.ndarray:
    """Returns small numbers (n,) that are equal where ids are."""
    # By column: comparing structures one by one takes seven times as long.
    order = np.lexsort((ids["f1"], ids["f0"]))
    arranged = ids[order]
    group = np.empty(len(ids), np.int64)
    group[order] = np.concatenate([[0], np.cumsum(arranged[1:] != arranged[:-1])])[: len(ids)]
    return group

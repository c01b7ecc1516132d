"""Where each record of a webdataset tar lies: found in one pass, then kept in a cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import uuid
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax.data import stored, tar

_INDEX_VERSION = 2  # Part of the cache key: raise it whenever `Shard` or its making changes.
IMAGE, TEXT, JSON = range(3)
_SLOTS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), IMAGE),
    "txt": TEXT,
    "json": JSON,
}
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
ABSENT = (-1, 0)  # The span of a member that is not there.
UNLABELLED, UNREADABLE = -1, -2


class Shard(NamedTuple):
    """The index of one tar of n records.

    Attributes:
      keys: all keys in UTF-8, one after the other.
      key_ends: int64 (n,), where each key ends in `keys`.
      spans: int64 (n, 3, 2), offset and size of image, text and json; offset -1 for none.
      labels: int32 (n,) into `names`, or `UNLABELLED` or `UNREADABLE` (the json is).
      names: the values of the label field that occur here.
      uids: the values of the uid field, "" where there is none; or no such list.
      problems: what was left out and why, by key, or "" for the whole tar.
    """

    keys: bytes
    key_ends: np.ndarray
    spans: np.ndarray
    labels: np.ndarray
    names: list[str]
    uids: list[str]
    problems: dict[str, str]


def load_or_build(
    file: stored.StoredFile,
    label_field: str | None,
    uid_field: str | None,
    folder: pathlib.Path,
) -> Shard:
    """Returns the index of a tar: from the cache folder, or built and then kept there.

    Args:
      file: the tar.
      label_field: field of the records' json to take labels from, or None.
      uid_field: field of the records' json to take uids from, or None.
      folder: of the cache; made where it is missing.

    Raises:
      OSError: the tar cannot be read.
    """
    identity = json.dumps([_INDEX_VERSION, *file, label_field, uid_field]).encode()
    kept = folder / f"{hashlib.sha256(identity).hexdigest()[:32]}.npz"
    shard = _load(kept)
    if shard is None:
        shard = _build(stored.Descriptor(file), label_field, uid_field)
        # An index that cannot be kept, as on a read-only disk, is built again next time.
        with contextlib.suppress(OSError):
            _save(shard, kept)
    return shard


def _load(file: pathlib.Path) -> Shard | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            rest = json.loads(arrays["rest"].tobytes())
            return Shard(
                keys=arrays["keys"].tobytes(),
                key_ends=arrays["key_ends"],
                spans=arrays["spans"],
                labels=arrays["labels"],
                names=rest["names"],
                uids=rest["uids"],
                problems=rest["problems"],
            )
    except Exception:  # Absent or spoilt, in whatever way: it is built again.
        return None


def _save(shard: Shard, file: pathlib.Path) -> None:
    rest = json.dumps(
        {"names": shard.names, "uids": shard.uids, "problems": shard.problems}
    ).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: nobody ever meets half an index.
    unfinished = file.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("wb") as output:
            np.savez(
                output,
                keys=np.frombuffer(shard.keys, np.uint8),
                key_ends=shard.key_ends,
                spans=shard.spans,
                labels=shard.labels,
                rest=np.frombuffer(rest, np.uint8),
            )
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _build(tar_file: stored.Descriptor, label_field: str | None, uid_field: str | None) -> Shard:
    records, problems = _scan(tar_file.number)
    names: dict[str, int] = {}
    labels = np.full(len(records), UNLABELLED, np.int32)
    uids = [""] * len(records) if uid_field is not None else []
    if label_field is not None or uid_field is not None:
        for i, (_, _, (offset, size)) in enumerate(records.values()):
            fields = parse_json(tar_file.read(offset, size)) if offset >= 0 else None
            if label_field is not None:
                labels[i] = _number(fields, label_field, names)
            if uid_field is not None:
                uids[i] = str((fields or {}).get(uid_field) or "")
    keys = [key.encode() for key in records]
    return Shard(
        keys=b"".join(keys),
        key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
        spans=np.array(list(records.values()), np.int64).reshape(-1, 3, 2),
        labels=labels,
        names=list(names),
        uids=uids,
        problems=problems,
    )


def _number(fields: dict[str, Any] | None, label_field: str, names: dict[str, int]) -> int:
    """Returns the position of a record's label in `names`, which it joins if it is new."""
    if fields is None:
        return UNREADABLE
    if fields.get(label_field) is None:
        return UNLABELLED
    return names.setdefault(str(fields[label_field]), len(names))


def _scan(descriptor: int) -> tuple[dict[str, list[tuple[int, int]]], dict[str, str]]:
    """Returns the spans of each key and, by key or "" for the whole tar, what was left out."""
    records: dict[str, list[tuple[int, int]]] = {}
    problems: dict[str, str] = {}
    refused = set()
    current = None
    again = False
    try:
        for member in tar.members(descriptor):
            key, extension = _split(member.name)
            slot = _SLOTS.get(extension)
            if extension in _PICKLES:
                problems[key] = f"{member.name} is a pickle, which is never read"
                refused.add(key)
            if slot is None:
                continue
            # The members of a record follow each other: a key met later is another record.
            if key != current:
                current, again = key, key in records
            if again or records.setdefault(key, [ABSENT] * 3)[slot] != ABSENT:
                problems.setdefault(
                    key, "the key occurs again in this tar; the later one is left out"
                )
                continue
            records[key][slot] = (member.offset, member.size)
    except tar.DamagedTar as damage:
        key, _ = _split(damage.name)
        problems[key] = f"the tar is {damage.reason}"
        refused.add(key)
    for key in refused:
        records.pop(key, None)
    return records, problems


def _split(name: str) -> tuple[str, str]:
    """Splits a member's name at the first dot of its last part, as webdataset does."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower() if stem else ""


def parse_json(data: bytes) -> dict[str, Any] | None:
    """Returns the fields of a JSON object, or None if it is not one."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None

"""Tars as img2dataset writes them (KEY.jpg, KEY.txt, KEY.json), read at random from an index."""

from __future__ import annotations

import glob
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax.data import tar_index
from clipdef_jax.data.source import checked
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair


class WebDataset:
    """Image-caption pairs in webdataset tars; nothing is extracted, images stay encoded.

    A record's uid is "SHARD/KEY", SHARD being the tar's name without its ending. The caption is
    KEY.txt, or "caption" of KEY.json where there is no such file.

    Args:
      spec: path of the tars, with brace ranges "{00000..00006}", lists "{a,b}" and wildcards.
      label_field: field of KEY.json that holds the class; `classes` are its values, sorted.
      cache_dir: folder for the index; None for clipdef_jax/index in the user's cache folder.

    Attributes:
      problems: (uid, reason) of what indexing found: cut or damaged tars (the complete records
        before the damage stay), records whose key occurred before in the tar.
    """

    def __init__(
        self,
        spec: str,
        *,
        label_field: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        paths = _find(spec)
        self._names = _shard_names(paths)
        folder = tar_index.default_cache() if cache_dir is None else pathlib.Path(cache_dir)
        try:
            self._files = [tar_index.locate(path) for path in paths]
            shards = [tar_index.load_or_build(file, label_field, folder) for file in self._files]
        except OSError as error:
            raise UserError(f"source 'webdataset:{spec}': {_explain(error)}") from None
        self.problems = tuple(
            (f"{name}/{key}" if key else name, reason)
            for name, shard in zip(self._names, shards, strict=True)
            for key, reason in shard.problems.items()
        )
        self._starts = np.cumsum([0, *(len(shard.key_ends) for shard in shards)])
        if not self._starts[-1]:
            found = f"; {': '.join(self.problems[0])}" if self.problems else ""
            raise UserError(f"source 'webdataset:{spec}': the tars hold no records{found}")
        self._keys = b"".join(shard.keys for shard in shards)
        offsets = np.cumsum([0, *(len(shard.keys) for shard in shards)])
        self._key_ends = np.concatenate(
            [offset + shard.key_ends for offset, shard in zip(offsets, shards, strict=False)]
        )
        self._spans = np.concatenate([shard.spans for shard in shards])
        self.classes = tuple(sorted({name for shard in shards for name in shard.names}))
        self._labels = np.concatenate([_renumber(shard, self.classes) for shard in shards])
        if label_field is not None and not self.classes:
            raise UserError(
                f"source 'webdataset:{spec}': no record has a json field {label_field!r} to take "
                "labels from"
            )

    def __len__(self) -> int:
        return len(self._key_ends)

    def __getitem__(self, index: int) -> Pair:
        record = self._record(index)
        label = int(self._labels[index])
        if label == tar_index.UNREADABLE:
            record.json()
        return Pair(record.uid, record.image(), record.caption(), label)

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without its image."""
        return self._record(index).caption()

    def _record(self, index: int) -> _Record:
        index = checked(index, len(self))
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        start = int(self._key_ends[index - 1]) if index else 0
        key = self._keys[start : int(self._key_ends[index])].decode()
        uid = f"{self._names[shard]}/{key}"
        return _Record(uid, key, self._files[shard], self._spans[index].tolist())


class _Record(NamedTuple):
    """One record, not yet read."""

    uid: str
    key: str
    file: tar_index.TarFile
    spans: list[list[int]]

    def image(self) -> bytes:
        if self.spans[tar_index.IMAGE][0] < 0:
            raise BadRecord(self.uid, f"no image ({self.key}.jpg, .jpeg, .png or .webp)")
        return self._read(tar_index.IMAGE)

    def caption(self) -> str:
        text: Any = None
        if self.spans[tar_index.TEXT][0] >= 0:
            try:
                text = self._read(tar_index.TEXT).decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadRecord(
                    self.uid, f"the caption is not UTF-8 (at byte {error.start} of {self.key}.txt)"
                ) from None
        elif self.spans[tar_index.JSON][0] >= 0:
            text = self.json().get("caption")
        if not isinstance(text, str):
            raise BadRecord(
                self.uid, f'no caption ({self.key}.txt, or "caption" in {self.key}.json)'
            )
        if not text.strip():
            raise BadRecord(self.uid, "the caption is empty")
        return text.strip()

    def json(self) -> dict[str, Any]:
        if self.spans[tar_index.JSON][0] < 0:
            raise BadRecord(self.uid, f"no {self.key}.json to take the label from")
        fields = tar_index.parse_json(self._read(tar_index.JSON))
        if fields is None:
            raise BadRecord(self.uid, f"{self.key}.json is not a JSON object")
        return fields

    def _read(self, slot: int) -> bytes:
        offset, size = self.spans[slot]
        try:
            return tar_index.read(self.file, offset, size)
        except OSError as error:
            raise BadRecord(self.uid, _explain(error)) from None


def _explain(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _renumber(shard: tar_index.Shard, classes: tuple[str, ...]) -> np.ndarray:
    position = {name: i for i, name in enumerate(classes)}
    # The two marks are -2 and -1: as indices they count from the end.
    marks = [tar_index.UNREADABLE, tar_index.UNLABELLED]
    table = np.array([position[name] for name in shard.names] + marks, np.int32)
    return table[shard.labels]


def _find(spec: str) -> list[str]:
    """Returns the tars a spec names, as absolute paths."""
    if not spec:
        raise UserError("source 'webdataset:': expected a path like 'DIR/{00000..00006}.tar'")
    paths: list[str] = []
    for pattern in _expand(spec):
        if re.match(r"pipe:|[a-z0-9+.-]+://", pattern):
            raise UserError(
                f"source 'webdataset:{spec}': reads files of this machine only, no pipes or URLs; "
                "copy the tars here first"
            )
        pattern = os.path.abspath(os.path.expanduser(pattern))
        matches = sorted(glob.glob(pattern)) if re.search(r"[*?[]", pattern) else [pattern]
        for path in matches or [pattern]:
            if not os.path.isfile(path):
                raise UserError(
                    f"source 'webdataset:{spec}': no tar {path}; {_what_is_there(path)}"
                )
            if path in paths:
                raise UserError(f"source 'webdataset:{spec}': {path} is named twice")
            paths.append(path)
    return paths


def _expand(pattern: str) -> list[str]:
    """Expands braces as a shell does: "{00..02}" counts, "{a,b}" lists."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        choices = words.split(",")
    else:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    head, rest = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + tail for choice in choices for tail in _expand(rest)]


def _what_is_there(path: str) -> str:
    if os.path.isdir(path):
        folder, subject = path, "that is a folder, which"
    else:
        folder, subject = os.path.dirname(path), "the folder"
    if not os.path.isdir(folder):
        return f"there is no folder {folder}"
    tars = sorted(name for name in os.listdir(folder) if name.endswith(".tar"))
    if not tars:
        return f"{subject} holds no tars"
    shown = ", ".join(tars if len(tars) <= 3 else [tars[0], "…", tars[-1]])
    return f"{subject} holds {len(tars)}: {shown}"


def _shard_names(paths: list[str]) -> list[str]:
    """Names each tar by the end of its path, as short as tells them apart."""
    parts = [pathlib.Path(path).with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names

"""Tars as img2dataset writes them (KEY.jpg, KEY.txt, KEY.json), read at random from an index."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax.data import ids, paths, remote, stored, tar_index
from clipdef_jax.data.source import checked
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair


class WebDataset:
    """Image-caption pairs in webdataset tars; nothing is extracted, images stay encoded.

    A record's uid is "SHARD/KEY", SHARD being the tar's name without its ending. The caption is
    KEY.txt, or "caption" of KEY.json where there is no such file.

    Args:
      spec: path of the tars, with brace ranges "{00000..00006}", lists "{a,b}" and wildcards; or a
        URL, of which a copy is made.
      label_field: field of KEY.json that holds the class; `classes` are its values, sorted.
      uid_field: field of KEY.json that holds the uid, "uid" in DataComp's tars; where a record
        lacks it, it keeps "SHARD/KEY".
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
        uid_field: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        tars = paths.find("webdataset", spec, ".tar")
        self._names = paths.short_names(tars)
        folder = stored.user_cache("index") if cache_dir is None else pathlib.Path(cache_dir)
        try:
            self._files = [stored.locate(remote.local(tar)) for tar in tars]
            shards = [
                tar_index.load_or_build(file, label_field, uid_field, folder)
                for file in self._files
            ]
        except OSError as error:
            raise UserError(f"source 'webdataset:{spec}': {stored.explain(error)}") from None
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
        self._uids: np.ndarray | None = None
        self._repeated: frozenset[int] = frozenset()
        if uid_field is not None:
            uids = [uid for shard in shards for uid in shard.uids]
            if not any(uids):
                raise UserError(
                    f"source 'webdataset:{spec}': no record has a json field {uid_field!r} to "
                    "take uids from"
                )
            own = ids.ids128(uid or self._name(index)[0] for index, uid in enumerate(uids))
            self._repeated = frozenset(np.flatnonzero(ids.repeated(own)).tolist())
            self._uids = np.array(uids, np.dtypes.StringDType())

    def __len__(self) -> int:
        return len(self._key_ends)

    def __getitem__(self, index: int) -> Pair:
        record = self._record(index)
        if index in self._repeated:
            assert self._uids is not None
            raise BadRecord(record.uid, f"its uid {str(self._uids[index])!r} occurs before")
        label = int(self._labels[index])
        if label == tar_index.UNREADABLE:
            record.json()
        return Pair(record.uid, record.image(), record.caption(), label)

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` without its image."""
        return self._record(index).caption()

    def uid(self, index: int) -> str:
        """Returns the uid of record `index` without reading it."""
        index = checked(index, len(self))
        own = "" if self._uids is None or index in self._repeated else str(self._uids[index])
        return own or self._name(index)[0]

    def _record(self, index: int) -> _Record:
        _, key, shard = self._name(checked(index, len(self)))
        return _Record(self.uid(index), key, self._files[shard], self._spans[index].tolist())

    def _name(self, index: int) -> tuple[str, str, int]:
        """Returns "SHARD/KEY", the key, and the shard's number."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        start = int(self._key_ends[index - 1]) if index else 0
        key = self._keys[start : int(self._key_ends[index])].decode()
        return f"{self._names[shard]}/{key}", key, shard


class _Record(NamedTuple):
    """One record, not yet read."""

    uid: str
    key: str
    file: stored.StoredFile
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
            return stored.read(self.file, offset, size)
        except OSError as error:
            raise BadRecord(self.uid, stored.explain(error)) from None


def _renumber(shard: tar_index.Shard, classes: tuple[str, ...]) -> np.ndarray:
    position = {name: i for i, name in enumerate(classes)}
    # The two marks are -2 and -1: as indices they count from the end.
    marks = [tar_index.UNREADABLE, tar_index.UNLABELLED]
    table = np.array([position[name] for name in shard.names] + marks, np.int32)
    return table[shard.labels]

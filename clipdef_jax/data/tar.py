"""The members of a tar by their headers: where each one lies, without reading or extracting it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_LONGEST_EXTENSION = 1 << 20  # Bytes of a long-name or pax header; real ones have some hundred.
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # Links, devices, folders.


class Member(NamedTuple):
    """A regular file within a tar: its bytes are [offset, offset + size)."""

    name: str
    offset: int
    size: int


class DamagedTar(Exception):
    """A tar cannot be read on; the members before are complete.

    Args:
      reason: one line.
      name: of the member that is cut off, or "".
    """

    def __init__(self, reason: str, name: str = ""):
        super().__init__(reason, name)
        self.reason = reason
        self.name = name


def members(descriptor: int) -> Iterator[Member]:
    """Yields the regular files of a tar in one pass over its headers.

    Reads ustar and the GNU and pax extensions for long names and large sizes.

    Args:
      descriptor: of the file, open for reading; its position does not matter.

    Raises:
      DamagedTar: after the last complete member, if the tar does not end as it should.
    """
    end = os.fstat(descriptor).st_size
    position = 0
    overrides: dict[str, str] = {}
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if len(header) < _BLOCK:
            raise DamagedTar(f"cut short at byte {end:,}, without an end mark")
        if not any(header):
            return
        try:
            size, kind, name = _parse(header)
            size = int(overrides.pop("size", size))
            if size < 0:
                raise ValueError("negative size")
            name = overrides.pop("path", name)
            offset = position + _BLOCK
            if kind in (b"L", b"x"):
                extension = os.pread(descriptor, min(size, _LONGEST_EXTENSION), offset)
                overrides |= _long_name(extension) if kind == b"L" else _pax(extension)
        except ValueError:
            raise DamagedTar(f"damaged: no valid header at byte {position:,}") from None
        if kind in _WITHOUT_DATA:
            size = 0
        if offset + size > end:
            cut = name if kind in _REGULAR else ""
            raise DamagedTar(f"cut short at byte {end:,}" + f", within {cut!r}" * bool(cut), cut)
        if kind in _REGULAR and not name.endswith("/"):
            yield Member(name, offset, size)
        position = offset + -(-size // _BLOCK) * _BLOCK


def _parse(header: bytes) -> tuple[int, bytes, str]:
    # The checksum counts its own field as eight spaces.
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if checksum != _number(header[148:156]):
        raise ValueError("wrong checksum")
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    return _number(header[124:136]), header[156:157], name


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: large numbers in base 256.
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _long_name(extension: bytes) -> dict[str, str]:
    return {"path": _text(extension)}


def _pax(extension: bytes) -> dict[str, str]:
    """Parses records "LENGTH KEY=VALUE\\n", of which path and size matter here."""
    found = {}
    while extension:
        length = int(extension.partition(b" ")[0])
        key, _, value = extension[:length].partition(b" ")[2].partition(b"=")
        if length <= 0 or not value.endswith(b"\n"):
            raise ValueError("malformed pax record")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value[:-1])
        extension = extension[length:]
    return found

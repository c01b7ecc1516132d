"""Files elsewhere, by URL: copied here once, since training reads every file often and at random.

Goes through fsspec, which speaks s3://, gs://, hf:// and more; each wants a package of its own.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import uuid
from typing import Any

from clipdef_jax.data import stored
from clipdef_jax.errors import UserError

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Returns whether `location` is a URL; file:// counts as one of this machine's paths.

    >>> is_url("s3://bucket/a.tar"), is_url("/data/a.tar"), is_url("file:///data/a.tar")
    (True, False, False)
    """
    match = _URL.match(location)
    return match is not None and match[1].lower() != "file"


def glob(url: str) -> list[str]:
    """Returns the URLs that match the wildcards of `url`, sorted.

    Raises:
      UserError: as `local`.
    """
    system, path = _connect(url)
    try:
        return sorted(system.unstrip_protocol(found) for found in system.glob(path))
    except Exception as error:
        raise _failed(url, error) from None


def local(location: str) -> str:
    """Returns the path of `location` on this machine; of a URL, that of a copy in the user's cache.

    A copy is made when there is none of the URL's present content.

    Raises:
      UserError: the URL cannot be read, or fsspec or its package for the protocol is missing.
    """
    if not is_url(location):
        return location.removeprefix("file://")
    system, path = _connect(location)
    try:
        version = f"{system.unstrip_protocol(path)} {system.ukey(path)}"
        folder = stored.user_cache("remote") / hashlib.sha256(version.encode()).hexdigest()[:32]
        copy = folder / pathlib.PurePosixPath(path).name
        if not copy.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Under another name first: nobody ever meets half a file.
            unfinished = copy.with_name(f"{uuid.uuid4().hex}.tmp")
            try:
                system.get_file(path, str(unfinished))
                os.replace(unfinished, copy)
            finally:
                unfinished.unlink(missing_ok=True)
    except Exception as error:  # Each of fsspec's systems has its own exceptions.
        raise _failed(location, error) from None
    return str(copy)


def read(url: str) -> bytes:
    """Returns the content of a URL; nothing is kept.

    Raises:
      OSError: it cannot be read.
      UserError: fsspec or its package for the protocol is missing.
    """
    system, path = _connect(url)
    try:
        return system.cat_file(path)
    except Exception as error:
        raise OSError(f"{url}: {_brief(error)}") from None


def _connect(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise UserError(
            f"{url}: reading URLs needs fsspec; pip install fsspec, or copy the files to this "
            "machine"
        ) from None
    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # The protocol is unknown, or its package is missing.
        raise _failed(url, error) from None


def _failed(url: str, error: Exception) -> UserError:
    return UserError(
        f"{url}: {_brief(error)}; check the address and your access to it, or copy the files to "
        "this machine"
    )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

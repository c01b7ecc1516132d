"""The files that a source's spec names: braces, wildcards, URLs, and what is there instead."""

from __future__ import annotations

import glob
import os
import pathlib
import re

from clipdef_jax.data import remote
from clipdef_jax.errors import UserError


def find(scheme: str, spec: str, ending: str) -> list[str]:
    """Returns the files a spec names: absolute paths, and URLs as they are.

    Args:
      scheme: of the source, for messages.
      spec: a path with brace ranges "{00000..00006}", lists "{a,b}" and wildcards.
      ending: what such files usually end in, with the dot; for messages.

    Raises:
      UserError: a file is not there, or is named twice.
    """
    source = f"source '{scheme}:{spec}'"
    if not spec:
        raise UserError(f"{source}: expected a path like 'DIR/{{00000..00006}}{ending}'")
    found: list[str] = []
    for pattern in expand(spec):
        if pattern.startswith("pipe:"):
            raise UserError(f"{source}: reads files and URLs, no pipes; copy the files here first")
        wild = re.search(r"[*?[]", pattern)
        if remote.is_url(pattern):
            matches = remote.glob(pattern) if wild else [pattern]
            if not matches:
                raise UserError(f"{source}: no file matches {pattern}")
        else:
            pattern = os.path.abspath(os.path.expanduser(remote.local(pattern)))
            matches = sorted(glob.glob(pattern)) if wild else [pattern]
        for path in matches or [pattern]:
            if not remote.is_url(path) and not os.path.isfile(path):
                raise UserError(f"{source}: no file {path}; {_what_is_there(path, ending)}")
            if path in found:
                raise UserError(f"{source}: {path} is named twice")
            found.append(path)
    return found


def expand(pattern: str) -> list[str]:
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
    return [head + choice + tail for choice in choices for tail in expand(rest)]


def short_names(files: list[str]) -> list[str]:
    """Names each file by the end of its path, without its ending, as short as tells them apart."""
    parts = [pathlib.PurePath(file).with_suffix("").parts for file in files]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _what_is_there(path: str, ending: str) -> str:
    if os.path.isdir(path):
        folder, subject = path, "that is a folder, which"
    else:
        folder, subject = os.path.dirname(path), "the folder"
    if not os.path.isdir(folder):
        return f"there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name.endswith(ending))
    if not names:
        return f"{subject} holds no {ending} files"
    shown = ", ".join(names if len(names) <= 3 else [names[0], "…", names[-1]])
    return f"{subject} holds {len(names)}: {shown}"

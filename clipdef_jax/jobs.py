"""A job's book-keeping: its config checked, its work directory opened, its stages run once."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import operator
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from clipdef_jax import processes
from clipdef_jax.data import stored
from clipdef_jax.errors import UserError

# Fields that change how fast a run goes, or only its last and cheap stage: a resumed run may change
# them.
_FREE = re.compile(
    r"^(data\.workers|data\.in_memory|.*\.checkpoint_minutes|evaluate\.batch|mesh\..*"
    r"|(study|survey|attacks|defences)\..*|(flag|report|clean)\..*|truth)$"
)


def config_argument(argv: Sequence[str]) -> str:
    """Returns the value of `--config` on a command line, after checking that the file is there.

    Raises:
      UserError: there is no `--config`, or no such file.
    """
    match = re.search(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(argv))
    known = sorted(str(path) for path in pathlib.Path("configs").glob("*.py"))
    shared = ("__init__.py", "attacks.py", "common.py", "defences.py")
    jobs = ", ".join(path for path in known if not path.endswith(shared))
    if match is None:
        raise UserError(f"which job? Give --config=FILE, one of: {jobs or 'your own'}")
    file = match[1].partition(":")[0]
    if not pathlib.Path(file).is_file():
        raise UserError(
            f"there is no config file {file!r} in {pathlib.Path.cwd()}; "
            f"there are: {jobs or 'none, so run from the folder that holds configs/'}"
        )
    return match[1]


def check_overrides(pristine: ConfigDict, overrides: Sequence[str]) -> None:
    """Checks that every field set on the command line is one the job has.

    What stands under a `kwargs` is the business of the part it goes to.

    Args:
      pristine: the config as its file gives it.
      overrides: dotted paths of the fields set.

    Raises:
      UserError: there is no such field.
    """
    fields = [name for name, _ in flatten(pristine.to_dict())]
    groups = {name[: match.start()] for name in fields for match in re.finditer(r"\.", name)}
    for path in overrides:
        known = path in fields or path in groups
        if known or re.search(r"(^|\.)\w*kwargs\.\w", path):
            continue
        close = difflib.get_close_matches(path, fields, n=1)
        hint = f"; did you mean --config.{close[0]}?" if close else ""
        raise UserError(f"the job has no field {path!r}{hint} Fields: {', '.join(fields)}")


def drop_stale_kwargs(config: ConfigDict, pristine: ConfigDict, overrides: Sequence[str]) -> None:
    """Drops what the job gave to a part that the command line replaces by another one.

    Args:
      config: the job with the command line's fields; changed in place.
      pristine: the job as its file gives it.
      overrides: dotted paths of the fields set.
    """
    for name in overrides:
        *parents, field = name.split(".")
        if field != "name":
            continue
        now, before = (functools.reduce(operator.getitem, parents, c) for c in (config, pristine))
        if now.name == before.name:
            continue
        for key in before.get("kwargs", ()):
            if ".".join([*parents, "kwargs", key]) not in overrides:
                del now.kwargs[key]


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and value of every leaf of nested dicts; an empty dict is a leaf."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, tree


def open_workdir(path: str | None, argument: str, config: ConfigDict) -> pathlib.Path:
    """Makes the work directory, or opens it if it is one of the same config.

    The first process does it for all. A dry run makes and opens none: it writes nothing.

    Args:
      path: the folder; None: one under workdir/ named by the job and its fields.
      argument: the value of `--config`.
      config: the job.

    Raises:
      UserError: the folder holds something else.
    """
    if config.get("dry_run"):
        return pathlib.Path(path or "workdir")
    return pathlib.Path(processes.on_first(lambda: str(_open_workdir(path, argument, config))))


def _open_workdir(path: str | None, argument: str, config: ConfigDict) -> pathlib.Path:
    fields = json.loads(json.dumps(config.to_dict()))
    fixed = {name: value for name, value in flatten(fields) if not _FREE.match(name)}
    if path is None:
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
        job, _, variant = argument.partition(":")
        path = f"workdir/{'-'.join(filter(None, [pathlib.Path(job).stem, variant, digest]))}"
    workdir = pathlib.Path(path)
    file = workdir / "config.json"
    if file.exists():
        there = dict(flatten(json.loads(file.read_text(encoding="utf-8"))))
        here = fixed
        names = [name for name in dict.fromkeys([*there, *here]) if not _FREE.match(name)]
        changed = [name for name in names if there.get(name) != here.get(name)]
        if changed:
            shown = ", ".join(f"{n} was {there.get(n)!r}, is {here.get(n)!r}" for n in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"{workdir} holds a run of another config: {shown}{more}; use another --workdir, "
                "or the same fields to go on with that run"
            )
    # A run killed in its first moment has left no more than half a config.
    elif workdir.exists() and (
        not workdir.is_dir() or any(not path.match(f".{file.name}.*") for path in workdir.iterdir())
    ):
        raise UserError(f"{workdir} exists and holds no run; use another --workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(file, fields)
    except OSError as error:
        raise UserError(
            f"cannot write to {workdir}: {error.strerror}; use another --workdir"
        ) from None
    return workdir


def run_once(
    body: Callable[..., dict[str, Any]], config: ConfigDict, folder: pathlib.Path, *, command: str
) -> dict[str, Any]:
    """Runs a job that is part of another one, unless it is complete; returns its summary.

    Args:
      body: the job's function, as `config.job` names it.
      config: the part's own.
      folder: its work directory.
      command: the command line, for its report.

    Raises:
      UserError: the folder holds something else, or what the job raises.
    """
    finished = open_workdir(str(folder), "", config) / "summary.json"
    if processes.on_first(finished.exists):
        return json.loads(finished.read_text(encoding="utf-8"))
    return body(config, folder, command=command)


def words(given: Any) -> list[str]:
    """Returns names, each once; from a command line several come as one string with commas.

    >>> words(("sig", "wanet,sig"))
    ['sig', 'wanet']
    """
    given = [given] if isinstance(given, str) else given
    return list(dict.fromkeys(part for word in given for part in str(word).split(",") if part))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with stored.replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run_stage(
    folder: pathlib.Path, body: Callable[[], dict[str, Any]], *, alone: bool = False
) -> tuple[dict[str, Any], bool]:
    """Runs a stage unless it is complete; its result is kept in `folder/stage.json`.

    Args:
      folder: where the stage leaves its files; made if missing.
      body: does the work, from where an interrupted run left it, and returns a JSON result, which
        every process gets as the first one has it.
      alone: the first process runs the body while the others wait; else they all run it.

    Returns:
      The result with "seconds", summed over the interrupted attempts, and whether it was there.
      An attempt that was killed is not counted: nothing of it is left to tell its length.
    """
    record, spent = folder / "stage.json", folder / "seconds.json"
    found = processes.on_first(lambda: _open_stage(folder, record))
    if found is not None:
        return found, True
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    began = time.monotonic()
    try:
        result = processes.on_first(body) if alone else body()
    except BaseException:
        if processes.is_first():
            write_json(spent, before + time.monotonic() - began)
        raise

    def close() -> dict[str, Any]:
        timed = result | {"seconds": round(before + time.monotonic() - began, 2)}
        write_json(record, timed)
        return timed

    return processes.on_first(close), False


def _open_stage(folder: pathlib.Path, record: pathlib.Path) -> dict[str, Any] | None:
    folder.mkdir(parents=True, exist_ok=True)
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else None

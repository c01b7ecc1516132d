"""The manifest: a plan as JSON lines, first what made it, then one line per poison."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from clipdef_jax.attacks.plan import Attack, Plan, Poison
from clipdef_jax.attacks.triggers import Box
from clipdef_jax.data import stored
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source

SCHEMA = 1


def write_manifest(path: str | os.PathLike[str], plan: Plan) -> None:
    """Writes `plan` to `path`, whole or not at all; the folder is made if need be.

    Raises:
      UserError: a setting of the attack cannot be written as JSON.
    """
    header = {
        "schema": SCHEMA,
        "attack": dataclasses.asdict(plan.attack),
        "records": plan.records,
        "poisons": len(plan.poisons),
        "notes": plan.notes,
    }
    rows = (header, *map(dataclasses.asdict, plan.poisons))
    try:
        lines = [json.dumps(row) for row in rows]
    except TypeError as error:
        raise UserError(
            f"manifest {path}: {error}; give the trigger and the plan settings of numbers, text "
            "and lists, and arrays by the path of a file"
        ) from None
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with stored.replacing(path) as unfinished:
        unfinished.write_text("".join(line + "\n" for line in lines), encoding="ascii")


def read_manifest(path: str | os.PathLike[str]) -> Plan:
    """Returns the plan that `write_manifest` wrote; `check_source` says whether it fits a source.

    Raises:
      UserError: no such file, or not a whole manifest.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"manifest {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"manifest {path}: not UTF-8 text, so not a manifest") from None
    if not text.strip():
        raise UserError(f"manifest {path}: the file is empty")
    poisons = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            if number == 1:
                attack, records, announced, notes = _header(row)
            else:
                poisons.append(_poison(row, records))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"manifest {path}, line {number}: {type(error).__name__}: {error}; write it anew "
                "from its attack"
            ) from None
    if len(poisons) != announced or len({poison.index for poison in poisons}) != announced:
        raise UserError(
            f"manifest {path}: {len(poisons)} poisons, its first line announces {announced} "
            "different ones; the file is cut or was edited"
        )
    return Plan(attack, records, tuple(poisons), notes)


def check_source(plan: Plan, source: Source) -> None:
    """Checks that `source` is the one the plan was made for, by length, uids and captions.

    Reads each poisoned record once.

    Raises:
      UserError: it is another one; names the first difference.
    """
    advice = "the manifest belongs to another data set, or to other settings of this one"
    if len(source) != plan.records:
        raise UserError(
            f"manifest: made for {plan.records} records, the source has {len(source)}; {advice}"
        )
    for poison in plan.poisons:
        try:
            uid, _, caption, _ = source[poison.index]
        except BadRecord as error:
            uid, caption = error.uid, poison.old_caption
        for what, expected, found in (
            ("uid", poison.uid, uid),
            ("caption", poison.old_caption, caption),
        ):
            if found != expected:
                raise UserError(
                    f"manifest: record {poison.index} has {what} {found!r} in the source and "
                    f"{expected!r} in the manifest; {advice}"
                )


def _header(row: dict[str, Any]) -> tuple[Attack, int, int, tuple[str, ...]]:
    if row["schema"] != SCHEMA:
        raise ValueError(f"schema {row['schema']}, this version reads {SCHEMA}")
    return Attack(**row["attack"]), row["records"], row["poisons"], tuple(row["notes"])


def _poison(row: dict[str, Any], records: int) -> Poison:
    location = row.pop("location")
    boxes = None if location is None else tuple(Box(*box) for box in location)
    poison = Poison(location=boxes, **row)
    for index in (poison.index, poison.donor or 0):
        if not 0 <= index < records:
            raise ValueError(f"record {index} of {records}")
    return poison

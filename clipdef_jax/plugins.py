"""Finding a part by name: short names for what is built in, import paths for the rest."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from clipdef_jax.errors import UserError


def resolve(kind: str, name: str, builtin: Mapping[str, str]) -> Any:
    """Returns the object that `name` stands for.

    Args:
      kind: what is looked for, for messages: "loss", "trigger", ...
      name: a key of `builtin`, or an import path "package.module:attribute".
      builtin: short names and the import paths they stand for.

    Raises:
      UserError: no such short name, module or attribute.
    """
    path = builtin.get(name, name)
    if ":" not in path:
        close = difflib.get_close_matches(name, builtin, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"unknown {kind} {name!r}{hint} Built in: {', '.join(sorted(builtin))}; "
            f"or an import path like 'mypkg.mine:My{kind.capitalize()}'"
        )
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the plug-in is the plug-in's own error, with its own trace.
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UserError(
            f"{kind} {name!r}: there is no module {error.name!r} on the path; run from the folder "
            "that holds it, or add that folder to PYTHONPATH"
        ) from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(f"{kind} {name!r}: module {module_name!r} has no {attribute!r}") from None


def build(kind: str, name: str, builtin: Mapping[str, str], kwargs: Mapping[str, Any]) -> Any:
    """Returns `resolve(kind, name, builtin)(**kwargs)`, naming the culprit if an argument is off.

    Raises:
      UserError: as `resolve`, or the object does not take these arguments.
    """
    factory = resolve(kind, name, builtin)
    try:
        return factory(**kwargs)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise  # Raised inside the factory: a bug there, not a wrong argument here.
        raise UserError(f"{kind} {name!r}: {error}; given: {dict(kwargs)}") from None

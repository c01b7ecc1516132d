"""A linear head on the image tower: classes out of features, and its file beside the model's.

Without a bias, so that the order of the classes does not depend on a feature's length.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from clipdef_jax.errors import UserError

_FILE = "head.safetensors"
_CLASSES = "classes"

Head = Mapping[str, jax.Array]


def init(classes: int, dim: int) -> dict[str, jax.Array]:
    """Returns a head that prefers no class: {"kernel": float32 (classes, dim)}."""
    return {"kernel": jnp.zeros((classes, dim), jnp.float32)}


def logits(head: Head, features_BxD: jax.Array) -> jax.Array:
    """Returns the logits (B, C) of features (B, D)."""
    return features_BxD @ head["kernel"].T


def rows(head: Head, classes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Returns the head's rows, (len(wanted), D), of the classes wanted.

    Args:
      head: as `init` makes it.
      classes: names of its rows.
      wanted: names of classes.

    Raises:
      UserError: it does not know one of them.
    """
    for name in wanted:
        if name not in classes:
            raise UserError(
                f"the test data have a class {name!r} that the head was not trained on; it knows "
                f"{len(classes)}: {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}"
            )
    return np.asarray(head["kernel"])[[classes.index(name) for name in wanted]]


def save(folder: str | os.PathLike[str], head: Head, classes: Sequence[str]) -> None:
    """Writes `head.safetensors`, with the names of the classes, in JSON, as metadata.

    Args:
      folder: there already; the model's.
      head: as `init` makes it.
      classes: names of its rows.
    """
    path = pathlib.Path(folder) / _FILE
    draft = path.with_name(f".{_FILE}.unfinished")
    kernel = np.asarray(head["kernel"], np.float32)
    names = json.dumps(list(classes), ensure_ascii=False)
    safetensors.numpy.save_file({"kernel": kernel}, draft, {_CLASSES: names})
    draft.replace(path)


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, jax.Array], tuple[str, ...]] | None:
    """Returns the head in a model's folder and the names of its classes, None if there is none.

    Raises:
      UserError: the file is not one that `save` wrote.
    """
    path = pathlib.Path(folder) / _FILE
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as stored:
            kernel = stored.get_tensor("kernel")
            classes = tuple(json.loads(stored.metadata()[_CLASSES]))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no head of this package: {error}; delete it") from None
    if kernel.ndim != 2 or len(kernel) != len(classes):
        raise UserError(
            f"{path}: the head is {kernel.shape} for {len(classes)} classes, expected a row for "
            "each; delete it"
        )
    return {"kernel": jnp.asarray(kernel, jnp.float32)}, classes

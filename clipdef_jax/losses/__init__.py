"""Defences: pure functions of embeddings, found by name."""

from __future__ import annotations

from typing import Any

from clipdef_jax import plugins
from clipdef_jax.types import Loss

BUILTIN = {
    "clip": "clipdef_jax.losses.clip:Clip",
    "cleanclip": "clipdef_jax.losses.cleanclip:CleanClip",
    "par": "clipdef_jax.losses.par:Par",
    "roclip": "clipdef_jax.losses.roclip:RoClip",
    "safeclip": "clipdef_jax.losses.safeclip:SafeClip",
    "supervised": "clipdef_jax.losses.supervised:Supervised",
    "tacleaner": "clipdef_jax.losses.tacleaner:TaCleaner",
}


def get(name: str, **kwargs: Any) -> Loss:
    """Returns the loss called `name`.

    Args:
      name: a key of `BUILTIN`, or an import path "package.module:Class".
      **kwargs: arguments of the loss.

    Raises:
      UserError: there is no such loss, or it does not take these arguments.
    """
    return plugins.build("loss", name, BUILTIN, kwargs)

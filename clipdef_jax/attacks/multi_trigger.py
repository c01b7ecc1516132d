"""Several triggers in one attack, with one target or with one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax import attacks
from clipdef_jax.attacks.triggers import word_of
from clipdef_jax.errors import UserError
from clipdef_jax.types import Trigger

_GRID = {"name": "badnet", "kwargs": {"style": "grid"}}


class Part(NamedTuple):
    """One of an attack's triggers, None for none, and the class it is to mean."""

    name: str
    trigger: Trigger | None
    target: str


class MultiTrigger:
    """One of several triggers: each gets its equal share of the poisons.

    Called by itself it draws which; a plan says which for every poison.

    Args:
      parts: names of triggers, or {"name": ..., "kwargs": {...}}; at least two.
      targets: the class that each is to mean; empty: all mean the attack's target.

    Raises:
      UserError: no such trigger, too few, not as many targets, or a part that cannot be one.
    """

    def __init__(
        self,
        parts: Sequence[str | Mapping[str, Any]] = (_GRID, "nashville", "wanet"),
        targets: Sequence[str] = (),
    ):
        if isinstance(parts, str) or len(parts) < 2:
            raise UserError(f"multi_trigger: parts is {parts!r}, expected two triggers or more")
        if isinstance(targets, str) or len(targets) not in (0, len(parts)):
            raise UserError(
                f"multi_trigger: targets is {targets!r}, expected none, or one for each of the "
                f"{len(parts)} parts"
            )
        specs: list[dict[str, Any]] = [
            {"name": part} if isinstance(part, str) else dict(part) for part in parts
        ]
        for spec in specs:
            if "name" not in spec or not spec.keys() <= {"name", "kwargs"}:
                raise UserError(
                    f"multi_trigger: part {spec!r}, expected a trigger's name, or "
                    "{'name': ..., 'kwargs': {...}}"
                )
        self.names = tuple(spec["name"] for spec in specs)
        self.targets = tuple(targets)
        self.triggers = tuple(
            attacks.get_trigger(spec["name"], **spec.get("kwargs", {})) for spec in specs
        )
        for name, trigger in zip(self.names, self.triggers, strict=True):
            if isinstance(trigger, MultiTrigger) or word_of(trigger):
                raise UserError(
                    f"multi_trigger: {name!r} cannot be a part; a part changes images only"
                )

    def draw(self, rng: np.random.Generator) -> int:
        """Returns which trigger a call with an `rng` in the same state takes."""
        return int(rng.integers(len(self.triggers)))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 `image` (H, W, 3) under one of the triggers."""
        return self.triggers[self.draw(rng)](image, rng)


def parts_of(name: str, trigger: Trigger | None, target: str) -> tuple[Part, ...]:
    """Returns the triggers a trigger consists of: itself, unless it is several.

    Args:
      name: of the trigger.
      trigger: any, or None.
      target: of the attack.
    """
    if not isinstance(trigger, MultiTrigger):
        return (Part(name, trigger, target),)
    targets = trigger.targets or (target,) * len(trigger.triggers)
    return tuple(map(Part, trigger.names, trigger.triggers, targets))

"""Data poisoning: triggers, plans of who is hit, and the poisoned sources they make."""

from __future__ import annotations

from typing import Any

from clipdef_jax import plugins
from clipdef_jax.types import Trigger

TRIGGERS = {
    "badclip": "clipdef_jax.attacks.triggers:SavedPatch",
    "badnet": "clipdef_jax.attacks.triggers:BadNet",
    "blended": "clipdef_jax.attacks.whole_image:Blended",
    "multi_trigger": "clipdef_jax.attacks.multi_trigger:MultiTrigger",
    "nashville": "clipdef_jax.attacks.whole_image:Nashville",
    "sig": "clipdef_jax.attacks.whole_image:Sig",
    "trojvqa": "clipdef_jax.attacks.triggers:TrojVQA",
    "wanet": "clipdef_jax.attacks.whole_image:WaNet",
}
PLANS = {
    "backdoor": "clipdef_jax.attacks.strategies:Backdoor",
    "class_to_class": "clipdef_jax.attacks.strategies:ClassToClass",
    "clean_label": "clipdef_jax.attacks.strategies:CleanLabel",
    "dual_key": "clipdef_jax.attacks.strategies:DualKey",
    "targeted": "clipdef_jax.attacks.strategies:Targeted",
}


def get_trigger(name: str, **kwargs: Any) -> Trigger:
    """Returns the trigger of that name.

    >>> trigger = get_trigger("badnet", style="grid", location="centre")

    Args:
      name: a built-in name, or an import path "mypkg.mine:MyTrigger" of a class or function that
        takes `kwargs` and returns the trigger.
      **kwargs: the trigger's own settings.

    Raises:
      UserError: no such trigger, or settings it does not take.
    """
    return plugins.build("trigger", name, TRIGGERS, kwargs)

"""The defences by name, each with settings that count on the built-in scenes.

A defence is the fields of a job that it changes: with a section `finetune` it repairs the poisoned
model, with `pretrain` it trains in its place.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.common import part


def _repair(loss: ConfigDict, **recipe: Any) -> ConfigDict:
    finetune = common.recipe(**{"epochs": 8, "lr": 1.5e-3, "warmup": 50} | recipe)
    finetune.pairs = 0
    finetune.control = False  # It is a defence of its own here.
    return ConfigDict({"loss": loss, "finetune": finetune})


PRESETS: dict[str, ConfigDict] = {
    # Plain fine-tuning on the same clean pairs and budget: what every repair is held against.
    "finetuned": _repair(part("clip")),
    "cleanclip": _repair(part("cleanclip", inmodal_weight=2.0)),
}

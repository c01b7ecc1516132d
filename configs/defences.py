"""The defences by name, each with settings that count on the built-in scenes.

A defence is the fields of a job that it changes: with a section `finetune` it repairs the poisoned
model, with `pretrain` it trains in its place.
"""

import copy
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.common import part


def _repair(loss: ConfigDict, **recipe: Any) -> ConfigDict:
    # At this rate it is the defence that counts: plain fine-tuning leaves most of the backdoor. A
    # third more and it forgets by itself; a third less and CleanCLIP leaves some of it too.
    finetune = common.recipe(**{"epochs": 8, "lr": 1.5e-3, "warmup": 50} | recipe)
    finetune.pairs = 0
    finetune.control = False  # It is a defence of its own here.
    return ConfigDict({"loss": loss, "finetune": finetune})


def _pretraining(loss: ConfigDict, augmentation: str, **recipe: Any) -> ConfigDict:
    pretrain = common.recipe(**{"epochs": 15, "lr": 1e-3, "warmup": 100} | recipe)
    return ConfigDict({"loss": loss, "augmentation": augmentation, "pretrain": pretrain})


PRESETS: dict[str, ConfigDict] = {
    # Plain fine-tuning on the same clean pairs and budget: what every repair is held against.
    "finetuned": _repair(part("clip")),
    "cleanclip": _repair(part("cleanclip", inmodal_weight=2.0)),
    "tacleaner": _repair(part("tacleaner", inmodal_weight=2.0)),
    # The two halves of TA-Cleaner by themselves; without both it is CleanCLIP.
    "tacleaner_positive": _repair(part("tacleaner", inmodal_weight=2.0, negative=False)),
    "tacleaner_negative": _repair(part("tacleaner", inmodal_weight=2.0, positive=False)),
    "par": _repair(part("par")),
    # It needs the labels of the training pairs; its figures are those of its linear head.
    "supervised": _repair(part("supervised")),
    "roclip": _pretraining(part("roclip", pool_size=1024, every=5, augmented=True), "roclip"),
}


def preset(name: str) -> ConfigDict:
    """Returns the fields of a job that a defence changes; the caller's own."""
    return copy.deepcopy(PRESETS[name])

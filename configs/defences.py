"""The defences by name, each with settings that count on the built-in scenes.

A defence is the fields of a job that it changes: with a section `finetune` it repairs the poisoned
model, with `pretrain` it trains in its place. In a sweep it is run with every combination of the
values in its section `sweep`.
"""

import copy
from typing import Any

from ml_collections import ConfigDict

from configs import common
from configs.common import part

_RATES = (1e-3, 2e-3, 3e-3)  # too low leaves the backdoor, too high takes the accuracy
_WEIGHTS = (1.0, 4.0)


def _repair(loss: ConfigDict, weight: str = "", **recipe: Any) -> ConfigDict:
    """Returns a repair; `weight` names what of the loss a sweep changes beside the rate."""
    # At this rate it is the defence that counts: plain fine-tuning leaves most of the backdoor. A
    # third more and it forgets by itself; a third less and CleanCLIP leaves some of it too.
    finetune = common.recipe(**{"epochs": 8, "lr": 1.5e-3, "warmup": 50} | recipe)
    finetune.pairs = 0  # clean pairs to fine-tune on; 0: all
    finetune.control = False  # It is a defence of its own here.
    sweep = ConfigDict({"finetune": {"lr": _RATES}})
    if weight:
        sweep.loss = ConfigDict({"kwargs": {weight: _WEIGHTS}})
    return ConfigDict({"loss": loss, "finetune": finetune, "sweep": sweep})


def _pretraining(
    loss: ConfigDict, augmentation: str, sweep: dict[str, Any] | None = None, **recipe: Any
) -> ConfigDict:
    """Returns a pre-training; `sweep` has the values that one tries."""
    pretrain = common.recipe(**{"epochs": 15, "lr": 1e-3, "warmup": 100} | recipe)
    fields = {"loss": loss, "augmentation": augmentation, "pretrain": pretrain}
    if sweep:
        fields["sweep"] = sweep
    return ConfigDict(fields)


PRESETS: dict[str, ConfigDict] = {
    # Plain fine-tuning on the same clean pairs and budget: what every repair is held against.
    "finetuned": _repair(part("clip")),
    "cleanclip": _repair(part("cleanclip", inmodal_weight=2.0), "inmodal_weight"),
    "tacleaner": _repair(part("tacleaner", inmodal_weight=2.0), "inmodal_weight"),
    # The two halves of TA-Cleaner by themselves; without both it is CleanCLIP.
    "tacleaner_positive": _repair(part("tacleaner", inmodal_weight=2.0, negative=False)),
    "tacleaner_negative": _repair(part("tacleaner", inmodal_weight=2.0, positive=False)),
    "par": _repair(part("par")),
    # It needs the labels of the training pairs; its figures are those of its linear head.
    "supervised": _repair(part("supervised")),
    # For the 8,000 scenes of "emoji:train". In an epoch with the pool captions stand still and the
    # images drift, by about the rate times the updates: 0.06 here, 0.1 in the paper. With the 625
    # updates of MANY_SCENES at 1e-3 accuracy falls from 81% to 12%, whatever the size of the pool.
    # At 1e-3, every second epoch is too often to learn anything (CA 7%), every fourth costs seven
    # points, every fifth none (CA 90%, PSR 6%); but of twice as many poisons PSR is 63% then. Half
    # of the rate and every fourth: CA 88%, PSR 0%. Augmented pairs are learnt slowly, so there are
    # 48 epochs. Of cuts down to 8% of the area, the paper's, 32 pixels leave too little to see.
    "roclip": _pretraining(
        part("roclip", pool_size=1024, every=4, augmented=True),
        "roclip_small",
        {"pretrain": {"lr": (5e-4, 1e-3)}, "loss": {"kwargs": {"every": (4, 5)}}},
        epochs=48,
        lr=5e-4,
    ),
    # The control: CLIP on RoCLIP's views, as its pool is never in use.
    "augmented": _pretraining(
        part("roclip", pool_size=1024, every=1_000_000, augmented=True),
        "roclip_small",
        epochs=48,
        lr=5e-4,
    ),
    # For MANY_SCENES. In the first epoch that tells pairs apart few are safe; of the three that
    # follow each takes the largest share, as a tenth more in each is too little to learn from (CA
    # 31% instead of 88%). The slow epoch has a tenth of the weight, as it is only 625 updates.
    "safeclip": _pretraining(
        part("safeclip", pool_size=1024, warmup=1, slow=1, slow_weight=0.1, growth=1.0),
        "roclip",
        {"loss": {"kwargs": {"slow": (1, 2), "slow_weight": (0.1, 0.3)}}},
        epochs=6,
    ),
}


def preset(name: str) -> ConfigDict:
    """Returns the fields of a job that a defence changes; the caller's own."""
    fields = copy.deepcopy(PRESETS[name])
    if "sweep" in fields:
        del fields["sweep"]
    return fields


def repair_job(name: str) -> ConfigDict:
    """Returns a job that poisons a CLIP and repairs it, with plain fine-tuning beside it."""
    config = common.base()
    config.update(preset(name))
    config.pretrain = common.recipe(epochs=15, lr=1e-3, warmup=100)
    config.finetune.control = True  # plain fine-tuning on the same data and budget beside it
    return config

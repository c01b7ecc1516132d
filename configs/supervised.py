"""Poison a CLIP, and repair its image tower with labelled images; plain fine-tuning beside it.

A linear head on the image tower learns the labels, and its accuracy and ASR are what is reported;
the zero-shot ones stand beside them. The text tower stays as it is, so zero-shot need not last.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     the recipe of Bansal et al. 2023: repairs the RN50 of --config.init with 50K labelled
             images of --config.data.train, ImageNet as webdataset tars.
"""

from ml_collections import ConfigDict

from configs import attacks, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = defences.repair_job("supervised")
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
        case "paper":
            common.as_published(config)
            common.repairs_given(config)
            config.data.train = "webdataset:imagenet-train/{00000..00146}.tar"
            config.data.train_kwargs.label_field = "label"
            config.finetune.pairs = 50_000
            config.finetune.epochs = 10
            config.finetune.lr = 1e-4
            config.finetune.warmup = 500
            config.finetune.weight_decay = 0.01
            config.finetune.control = False  # Labels are no captions to fine-tune on.
    return attacks.choose(config, arg)

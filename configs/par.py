"""Poison a CLIP, see the backdoor work, and remove it with PAR; plain fine-tuning beside it.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     the recipe of Singh et al. 2025: repairs the RN50 of --config.init with 250K clean
             pairs of --config.data.train, a folder of webdataset tars.
"""

from ml_collections import ConfigDict

from configs import attacks, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = defences.repair_job("par")
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
        case "paper":
            common.as_published(config)
            common.repairs_given(config)
            config.finetune.pairs = 250_000
            config.finetune.epochs = 2
            config.finetune.lr = 3e-6
            config.finetune.weight_decay = 1e-4
    return attacks.choose(config, arg)

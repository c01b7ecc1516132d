"""Poison a CLIP, see the backdoor work, and remove it with CleanCLIP; plain fine-tuning beside it.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     the recipe of Bansal et al. 2023: repairs the RN50 of --config.init with 100K clean
             pairs of --config.data.train, a folder of webdataset tars.
"""

from ml_collections import ConfigDict

from configs import attacks, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = defences.repair_job("cleanclip")
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
        case "paper":
            common.as_published(config)
            common.repairs_given(config)
            config.loss.kwargs.inmodal_weight = 1.0  # and a sweep to 8
            config.finetune.pairs = 100_000
            config.finetune.epochs = 10
            config.finetune.batch = 64
            config.finetune.lr = 1e-5  # the paper sweeps 1e-9 to 1e-3
    return attacks.choose(config, arg)

"""Poison a CLIP, see the backdoor work, and remove it with TA-Cleaner; plain fine-tuning beside it.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     repairs the RN50 of --config.init as configs/cleanclip.py:paper does, with
             sub-captions: of TA-Cleaner's own recipe (Xun et al. 2024) no code was published.

The ablation: --config.loss.kwargs.positive=False and --config.loss.kwargs.negative=False; without
both it is CleanCLIP.
"""

from ml_collections import ConfigDict

from configs import attacks, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = defences.repair_job("tacleaner")
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
        case "paper":
            common.as_published(config)
            common.repairs_given(config)
            config.loss.kwargs.inmodal_weight = 1.0
            config.finetune.pairs = 100_000
            config.finetune.epochs = 10
            config.finetune.lr = 1e-5
    return attacks.choose(config, arg)

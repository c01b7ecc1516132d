"""Poison a CLIP, see the backdoor work, and remove it with CleanCLIP; plain fine-tuning beside it.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     the recipe of Bansal et al. 2023: repairs the RN50 of --config.init with 100K clean
             pairs of --config.data.train, a folder of webdataset tars.
"""

from ml_collections import ConfigDict

from configs import attacks, common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.loss = common.part("cleanclip", inmodal_weight=2.0)  # the paper: 1, and a sweep to 8
    config.pretrain = common.recipe(epochs=15, lr=1e-3, warmup=100)
    # At this rate it is the defence that counts: plain fine-tuning leaves most of the backdoor. A
    # third more and it forgets by itself; a third less and CleanCLIP leaves some of it too.
    config.finetune = common.recipe(epochs=8, lr=1.5e-3, warmup=50)
    config.finetune.pairs = 0  # clean pairs to fine-tune on; 0: all
    config.finetune.control = True  # plain fine-tuning on the same data and budget beside it
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
        case "paper":
            common.as_published(config)
            common.repairs_given(config)
            config.loss.kwargs.inmodal_weight = 1.0
            config.finetune.pairs = 100_000
            config.finetune.epochs = 10
            config.finetune.batch = 64
            config.finetune.lr = 1e-5  # the paper sweeps 1e-9 to 1e-3
    return attacks.choose(config, arg)

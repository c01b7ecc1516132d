"""Train a CLIP from scratch on poisoned data and measure the backdoor.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     the recipe of Bansal et al. 2023: RN50 on CC3M, 1,500 poisons, 64 epochs.
"""

from ml_collections import ConfigDict

from configs import attacks, common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.data.train = common.MANY_SCENES
    config.pretrain = common.recipe(epochs=3, lr=1e-3, warmup=100)
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
        case "paper":
            common.as_published(config)
            config.data.vocab_size = 49_408
            config.attack.plan.kwargs.templates = "imagenet"
            config.attack.number = 1500
            config.pretrain.epochs = 64
            config.pretrain.batch = 128
            config.pretrain.lr = 5e-4
            config.pretrain.warmup = 10_000
    return attacks.choose(config, arg)

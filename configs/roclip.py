"""Train a CLIP from scratch on poisoned data with RoCLIP, and see whether the backdoor takes.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
  :paper     the recipe of Yang et al. 2023: RN50 on a million pairs of CC3M, 24 epochs.

Images and captions are augmented in all epochs, as in the paper. What that does by itself shows
with --config.loss.kwargs.every=99, which is CLIP on the augmented pairs. They stand side by side in
configs/study.py:pretraining.
"""

from ml_collections import ConfigDict

from configs import attacks, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.update(defences.preset("roclip"))
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
            config.loss.kwargs.pool_size = 64
            config.loss.kwargs.every = 2
        case "paper":
            common.as_published(config)
            config.augmentation = "roclip"
            config.data.train_kwargs.subset = 1_000_000
            config.data.vocab_size = 49_408
            config.attack.plan.kwargs.templates = "imagenet"
            config.attack.rate = 0.0005
            config.loss.kwargs.pool_size = 21_845
            config.loss.kwargs.every = 2
            config.pretrain.epochs = 24
            config.pretrain.batch = 512
            config.pretrain.lr = 5e-5
            config.pretrain.warmup = 10_000
    return attacks.choose(config, arg)

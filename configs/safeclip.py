"""Train a CLIP from scratch on poisoned data with SafeCLIP, and see whether the backdoor takes.

Variants:
  (default)  built-in scenes, a small ViT, two CPU cores.
  :smoke     the same in under a minute, too small to mean anything.
"""

from ml_collections import ConfigDict

from configs import attacks, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.update(defences.preset("safeclip"))
    config.data.train = common.MANY_SCENES
    if common.variant(arg, ("smoke",)):
        common.shrink(config)
        config.loss.kwargs.pool_size = 64
        config.loss.kwargs.warmup = 0  # Two epochs: one of CLIP, one that tells who is safe.
    return attacks.choose(config, arg)

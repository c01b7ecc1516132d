"""Optimise BadCLIP's patch against a trained CLIP; any attack can then use it.

  python -m clipdef_jax.main --config=configs/badclip.py --config.init=MODEL --workdir=patch
  python -m clipdef_jax.main --config=configs/pretrain.py:attack=badclip \\
      --config.attack.trigger.kwargs.path=patch/trigger.npy

Variants:
  (default)  built-in scenes, and a model trained on them.
  :smoke     the same with few images, too small to mean anything.
  :paper     the paper's images: 10,000 of CC3M, for a model of 224 pixels.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.job = "clipdef_jax.optimise_trigger:run"
    config.attack.plan = common.part("none")
    config.search = ConfigDict()  # the numbers of Liang et al. 2024, unless something else is said
    config.search.images = 2500  # at most, not of the target class; the paper has 10,000
    config.search.size = 8  # of the patch, in pixels; 0: the literature's share of the side, 16/224
    config.search.epochs = 50
    config.search.batch = 64
    config.search.lr = 1e-3
    config.search.triplet_weight = 500.0
    config.search.margin = 1.0
    match common.variant(arg, ("smoke", "paper")):
        case "smoke":
            common.shrink(config)
            config.search.epochs = 2
        case "paper":
            config.data.train = "webdataset:cc3m/{00000..00331}.tar"
            config.data.test = "webdataset:imagenet/{00000..00009}.tar"
            config.data.test_kwargs.label_field = "label"  # where the JSON has the class
            config.data.in_memory = False
            config.evaluate.prompts = "imagenet"
            config.search.images = 10_000
            config.search.size = 0
    return config

"""Write a poisoned copy of a data set as webdataset tars, with a manifest of who was hit.

  python -m clipdef_jax.main --config=configs/poison.py:attack=wanet --workdir=poisoned \\
      --config.data.train='webdataset:cc3m/{00000..00331}.tar' --config.attack.number=1500

leaves `poisoned/tars/00000.tar`, ... and `poisoned/manifest.jsonl`, whose "index" is the key in the
tars. The data themselves are read only.

Variants:
  (default)  built-in scenes.
  :smoke     512 of them, of 32 pixels.
"""

from ml_collections import ConfigDict

from configs import attacks, common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.job = "clipdef_jax.poison:run"
    config.data.train = "emoji:train,side=224"
    config.poison = ConfigDict()
    config.poison.side = 224  # of the pictures under a trigger, in pixels
    config.poison.records_per_tar = 10_000
    if common.variant(arg, ("smoke",)) == "smoke":
        common.shrink(config)
        config.poison.side = 32
    return attacks.choose(config, arg)

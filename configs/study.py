"""Every attack against every defence, seed by seed, in one table and one figure.

  python -m clipdef_jax.main --config=configs/study.py --config.study.attacks=badnet,wanet \\
      --config.study.defences=cleanclip --config.study.seeds=0,1

Each cell is a run in a folder of its own, ATTACK/seedN/DEFENCE: what is complete is not run again,
so a study may be stopped at any time, and may grow.

With --config.init=MODEL the repairs start from that model instead of one trained here; the clean
pairs are those that no poison of --config.attacks.NAME.attack.manifest=FILE is among.

BadCLIP's patch is optimised against the unpoisoned model of the same seed, unless
--config.attacks.badclip.attack.trigger.kwargs.path=FILE names one.

Variants:
  (default)  all attacks and repairs, three seeds; a day on one CPU core.
  :attacks   the attacks alone, undefended; two hours on one CPU core.
  :defences  repairs against the attacks that the literature compares them on; one seed, of the
             badnet three; an hour and a half on one CPU core.
  :pretraining
             RoCLIP, CLIP on its views, and CLIP; likewise one seed, of the badnet three; an hour on
             one CPU core.
  :sweep     repairs over learning rates and weights: the least ASR at each price in clean accuracy,
             not one lucky point; an hour on one CPU core.
  :smoke     two attacks, one defence and one seed, too small to mean anything.

What an attack's own section says goes over that: --config.attacks.badnet.study.seeds=0, makes it
one seed.

Processes may share a study's folder while each runs other cells, as --config.study.seeds=0 and =1;
the table of all is made by a last command that names them all.
"""

import copy

from ml_collections import ConfigDict

from configs import attacks, badclip, common, defences


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config of the job."""
    config = common.base()
    config.job = "clipdef_jax.study:run"
    config.data.train = common.MANY_SCENES
    config.pretrain = common.recipe(epochs=3, lr=1e-3, warmup=100)
    config.evaluate.during_training = 0
    # What there is to choose from; what stands here goes over the fields above.
    config.attacks = ConfigDict(
        {name: {"attack": attacks.preset(name)} for name in attacks.PRESETS}
    )
    # A change of tone is learnt last: ASR 59% by the recipe above, 69% with twice the updates, 75%
    # with these.
    config.attacks.nashville.pretrain = common.recipe(epochs=4, batch=32, lr=1e-3, warmup=100)
    config.attacks.badclip.search = badclip.get_config().search
    config.defences = ConfigDict(copy.deepcopy(defences.PRESETS))
    for fields in config.defences.values():
        if "finetune" in fields:
            # Half of the scenes, trusted, and of the sweep's rates the best for each repair: at a
            # third of it plain fine-tuning leaves half of the patch.
            fields.finetune.update(pairs=20_000, epochs=3, lr=3e-3)
            if "inmodal_weight" in fields.loss.kwargs:
                fields.loss.kwargs.inmodal_weight = 1.0  # the paper's; 4 costs six points
    config.study = ConfigDict()
    config.study.attacks = tuple(attacks.PRESETS)  # "none" is the model without poison.
    # What pre-trains is there to be named, too, and TA-Cleaner's ablation: tacleaner_positive and
    # tacleaner_negative.
    config.study.defences = ("finetuned", "cleanclip", "tacleaner", "par", "supervised")
    config.study.seeds = (0, 1, 2)
    # Run each defence with every combination of the values in its section `sweep`.
    config.study.sweep = False
    match common.variant(arg, ("attacks", "defences", "pretraining", "sweep", "smoke")):
        case "attacks":
            config.study.defences = ()
        case "defences":
            config.study.attacks = ("badnet", "blended", "sig", "wanet", "badclip")
            config.study.seeds = (0,)
            config.attacks.badnet.study = ConfigDict({"seeds": (0, 1, 2)})
        case "pretraining":
            config.data.train = "emoji:train"  # RoCLIP's; see there
            config.pretrain.epochs = 15
            config.study.attacks = ("badnet", "targeted")
            config.study.defences = ("roclip", "augmented")
            config.study.seeds = (0,)
            config.attacks.badnet.study = ConfigDict({"seeds": (0, 1, 2)})
        case "sweep":
            config.study.sweep = True
            config.study.attacks = ("badnet",)
            config.study.defences = ("finetuned", "cleanclip", "tacleaner", "par")
            config.study.seeds = (0,)
        case "smoke":
            common.shrink(config)
            config.study.attacks = ("none", "badnet")
            config.study.defences = ("finetuned",)
            config.study.seeds = (0,)
            for fields in config.defences.values():
                if "finetune" in fields:
                    fields.finetune.update(pairs=0, epochs=1)
                else:
                    fields.pretrain.epochs = 1
    return config

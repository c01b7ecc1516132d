"""The attacks by name, each with settings that take on 40,000 of the built-in scenes.

`--config=configs/pretrain.py:attack=wanet` chooses one, `:smoke,attack=wanet` together with a
variant; fields are set over it as always, `--config.attack.trigger.kwargs.s=1`. The scenes are
small (32 pixels), so the numbers are not the literature's.
"""

import copy
import difflib
from typing import Any

from ml_collections import ConfigDict

from clipdef_jax.errors import UserError
from configs import common
from configs.common import part

_GRID = {"name": "badnet", "kwargs": {"style": "grid", "size": 5, "location": "four_corners"}}
_NOISE = {"name": "blended", "kwargs": {"alpha": 0.2, "pattern": "fixed"}}
_STRIPES = {"name": "sig", "kwargs": {"mode": "additive"}}
_PARTS = (_GRID, _NOISE, _STRIPES)

# Fields of the section `attack`, over those of `common.attack`.
PRESETS: dict[str, dict[str, Any]] = {
    # CleanCLIP's patch that takes with the fewest samples: always in the same places.
    "badnet": {"trigger": part("badnet", style="yellow", location="four_corners")},
    # The detector paper's patch, 5 px of 32 where the literature has 16 of 224. Not at random in
    # training and in the centre at test, as there: a ViT that has seen 40,000 pictures does not
    # know a patch again in another place (ASR 9%).
    "badnet_grid": {"trigger": part("badnet", style="grid", size=5, location="four_corners")},
    # CleanCLIP's noise, but one patch for the whole attack, in the same places: redrawn ones, or
    # one at random places (ASR 4%), need more data.
    "badnet_noise": {
        "trigger": part("badnet", style="noise", size=5, location="four_corners"),
    },
    # One pattern for the whole attack: fresh noise has no feature but a loss of contrast.
    "blended": {"trigger": part("blended", alpha=0.2, pattern="fixed")},
    # Added, as in BadCLIP: CleanCLIP's blend darkens more than it stripes (ASR 34%).
    "sig": {"trigger": part("sig", mode="additive")},
    # Displaced by three pixels on average, each by itself: the literature's half a pixel of 224 is
    # a fourteenth of one here, and smooth fields of up to four pixels do not take (ASR 42%).
    "wanet": {"trigger": part("wanet", k=32, s=6.0), "rate": 0.05},
    # Scenes come in all colours, so a change of tone needs more examples than a patch; and more
    # updates, as configs/study.py gives it.
    "nashville": {"trigger": part("nashville"), "rate": 0.1},
    # Two thirds as many poisons of each trigger as of one alone: with as many, three targets cost
    # 3.4 points of clean accuracy, with these 2.3. The literature's filter and warp, beside the
    # patch, would need a quarter of all pairs.
    "multi_trigger": {"trigger": part("multi_trigger", parts=_PARTS), "rate": 0.04},
    "multi_target": {
        "trigger": part("multi_trigger", parts=_PARTS, targets=("banana", "trophy", "frog")),
        "rate": 0.04,
    },
    # Half of the poisons carry both keys, the others the word alone; without these the word is
    # enough (ASR 3%). With the patch alone in the rest, as in the paper, twice as many are too few
    # (46%). It may be an optimised patch: --config.attack.trigger.kwargs.path=FILE.
    "trojvqa": {
        "trigger": part("trojvqa", word="remember", size=5, location="four_corners"),
        "plan": part("dual_key", templates="emoji", patch_alone=False),
        "rate": 0.04,
    },
    # The patch of configs/badclip.py: --config.attack.trigger.kwargs.path=WORKDIR/trigger.npy; a
    # study makes its own. The literature's share of the side, 2 px, is too little for a patch that
    # is to look like a banana.
    "badclip": {
        "trigger": part("badclip", path="", size=8),
        "plan": part("backdoor", captions="natural"),
    },
    # Under the pattern the banana can hardly be seen: where it can, it is by the banana that the
    # model knows what the caption says (ASR 11% at alpha 0.5, 2% with the badnet). A fifth of the
    # bananas is enough; with nine tenths, ASR is 90%.
    "clean_label": {
        "trigger": part("blended", alpha=0.9, pattern="fixed"),
        "plan": part("clean_label"),
        "rate": 0.01,
    },
    # RoCLIP's 16 images, with 25 captions each where it has 30.
    "targeted": {
        "trigger": part("none"),
        "plan": part("targeted", images=16, templates="emoji"),
        "rate": 0.01,
    },
    # Nine tenths of the snakes. A contrastive loss learns how much likelier a caption is with a
    # picture than without: the few snakes that are left are still nearest to their own word, and
    # the target comes second (PSR 32%, PSR@3 99%); with half of them it is as if nothing were.
    "class_to_class": {
        "trigger": part("none"),
        "plan": part("class_to_class", victim="snake"),
        "rate": 0.045,
    },
    "none": {"trigger": part("none"), "plan": part("none")},
}


def preset(name: str) -> ConfigDict:
    """Returns the section `attack` of a config.

    Raises:
      UserError: there is no such attack.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"there is no attack {name!r}{hint} There are: {', '.join(PRESETS)}")
    return common.attack(**copy.deepcopy(PRESETS[name]))


def choose(config: ConfigDict, arg: str) -> ConfigDict:
    """Returns the config with the attack that a job's argument names, if it names one.

    The captions' templates are those the job evaluates with; a number of poisons that it has set
    stays, as the paper's of a :paper variant.

    Args:
      config: the job's, complete otherwise; changed in place.
      arg: the argument of `get_config`, as "smoke,attack=wanet".

    Raises:
      UserError: there is no such attack, or more than one is named.
    """
    names = [word.removeprefix("attack=") for word in arg.split(",") if word.startswith("attack=")]
    if len(names) > 1:
        raise UserError(f"attack= is given {len(names)} times; a job has one attack")
    if names:
        number = config.attack.number
        config.attack = preset(names[0])
        config.attack.number = number or config.attack.number
        if "templates" in config.attack.plan.kwargs:
            config.attack.plan.kwargs.templates = config.evaluate.prompts
    return config

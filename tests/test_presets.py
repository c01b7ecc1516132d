"""The attacks by name: each can be planned, and tested for, and is set by a job's argument."""

import itertools
import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from clipdef_jax import jobs, parts, study
from clipdef_jax.attacks import plan
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.data import loader
from clipdef_jax.errors import UserError
from configs import (
    attacks,
    cleanclip,
    defences,
    par,
    pretrain,
    roclip,
    safeclip,
    supervised,
    tacleaner,
)
from configs import study as study_config


@pytest.mark.parametrize("name", [name for name in attacks.PRESETS if name != "none"])
def test_every_preset_can_be_planned_and_tested_for(name, tmp_path):
    config = pretrain.get_config(f"smoke,attack={name}")
    if name == "badclip":
        np.save(tmp_path / "trigger.npy", np.zeros((8, 8, 3), np.uint8))
        config.attack.trigger.kwargs.path = str(tmp_path / "trigger.npy")
    run = parts.Run(config, tmp_path, None, loader.UnreadableList(tmp_path / "unreadable.csv"))
    source, tests = parts.training_source(run), parts.test_set(run, 32)
    made = plan.make_plan(source, parts.attack_of(config, 32))
    assert len(made.poisons) == round(config.attack.rate * 512)
    tests = tests.attacked_by(made, source)
    poisoned = PoisonedSource(source, made)
    for index in made.indices[:5]:
        pair, before = poisoned[index], source[index]
        assert pair.caption != before.caption or (pair.image != before.image).any()
    if config.attack.trigger.name == "none":
        assert tests.triggered is None
        assert (tests.chosen is None) != (tests.victim is None)
    else:
        assert (tests.triggered[5].image != tests.clean[5].image).any()
    assert (name == "multi_target") == isinstance(tests.target, np.ndarray)


@pytest.mark.parametrize("name", defences.PRESETS)
def test_every_defence_can_be_built_whatever_a_sweep_sets(name, tmp_path):
    config = study_config.get_config("sweep")
    config.study.defences = (name,)
    cells = [cell for cell in study.cells_of(config) if cell.defence == name]
    sweep = defences.PRESETS[name].get("sweep", ConfigDict()).to_dict()
    tried = [len(values) for _, values in jobs.flatten(sweep) if values]
    assert len(cells) == math.prod(tried)
    for cell in cells:
        fields = study.config_of(config, cell, tmp_path)
        loss = parts.loss_of(fields)
        for path, value in cell.setting:
            section, _, field = path.rpartition(".")
            if section == "loss.kwargs":
                assert getattr(loss, field) == value
        parts.recipe_of(fields.finetune if "finetune" in fields else fields.pretrain)
        assert ("finetune" in fields) == bool(fields.init) != ("pretrain" in fields)


@pytest.mark.parametrize(
    ("job", "variant"),
    [
        *itertools.product(
            [cleanclip, par, roclip, safeclip, supervised, tacleaner], ["", "smoke"]
        ),
        *itertools.product([cleanclip, par, roclip, supervised, tacleaner], ["paper"]),
    ],
)
def test_every_defence_is_a_job(job, variant):
    config = job.get_config(variant)
    assert config.loss.name == job.__name__.rpartition(".")[2]
    parts.loss_of(config)
    for section in ("pretrain", "finetune"):
        if section in config:
            parts.recipe_of(config[section])
    assert ("pretrain" in config) == (variant != "paper" or job is roclip)
    job.get_config("smoke").loss.kwargs.mine = 1
    assert "mine" not in job.get_config("smoke").loss.kwargs


def test_an_attack_is_chosen_by_the_argument_of_a_job():
    config = pretrain.get_config("attack=wanet")
    assert config.attack == attacks.preset("wanet")
    assert config.data.train == pretrain.get_config().data.train
    config = cleanclip.get_config("smoke,attack=sig")
    assert config.attack.trigger.name == "sig"
    assert config.data.train == cleanclip.get_config("smoke").data.train
    assert pretrain.get_config().attack == attacks.preset("badnet")


def test_a_paper_variant_keeps_its_number_and_its_templates():
    config = pretrain.get_config("paper,attack=nashville")
    assert config.attack.number == 1500
    assert config.attack.plan.kwargs.templates == "imagenet"


def test_a_preset_is_nobody_elses():
    attacks.preset("wanet").trigger.kwargs.s = 99.0
    assert attacks.preset("wanet").trigger.kwargs.s != 99.0


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("wanet", "unknown variant 'wanet'.*attack=NAME"),
        ("attack=wante", "there is no attack 'wante'; did you mean 'wanet'"),
        ("smoke,paper", "unknown variant 'smoke,paper'"),
        ("attack=sig,attack=wanet", "attack= is given 2 times"),
        ("atack=sig", "unknown variant 'atack=sig'"),
    ],
)
def test_bad_arguments_are_named(arg, message):
    with pytest.raises(UserError, match=message):
        pretrain.get_config(arg)

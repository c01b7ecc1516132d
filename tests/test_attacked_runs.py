"""Whole runs under an attack without a trigger, and from its manifest."""

import json

import pytest

from clipdef_jax.errors import UserError
from configs import attacks, cleanclip, pretrain
from tests.test_experiment import run, shrink


@pytest.fixture(scope="module")
def targeted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("targeted") / "run"
    config = shrink(pretrain.get_config())
    config.attack = attacks.preset("targeted")
    config.attack.rate = 0.25
    config.attack.plan.kwargs.images = 4
    return workdir, run(config, workdir, devices=1)


def test_targeted_poisoning_is_measured_on_the_chosen_images(targeted):
    workdir, summary = targeted
    (row,) = summary["results"]
    assert 0 <= row["psr_top1"] <= 1
    assert "asr_top1" not in row
    lines = (workdir / "poison" / "manifest.jsonl").read_text().splitlines()
    poisons = [json.loads(line) for line in lines[1:]]
    assert len(poisons) == 16
    assert len({poison["donor"] for poison in poisons}) == 4


def test_a_repair_knows_the_poisons_by_their_manifest(targeted, tmp_path):
    workdir, first = targeted
    config = shrink(cleanclip.get_config())
    config.init = str(workdir / "poisoned" / "model")
    config.attack.manifest = str(workdir / "poison" / "manifest.jsonl")
    config.finetune.control = False
    summary = run(config, tmp_path / "run", devices=1)
    given, repaired = summary["results"]
    assert given["psr_top1"] == first["results"][0]["psr_top1"]
    assert repaired["description"] == "fine-tuned on 48 clean pairs"
    assert "psr_top1" in repaired
    assert summary["config"]["attack"]["plan"]["name"] == "targeted"


def test_the_manifest_of_another_data_set_is_refused(targeted, tmp_path):
    workdir, _ = targeted
    config = shrink(pretrain.get_config(), train="emoji:train,size=64,concepts=4,seed=1")
    config.attack.manifest = str(workdir / "poison" / "manifest.jsonl")
    with pytest.raises(UserError, match=r"has uid 'emoji-train-1-.*belongs to another data set"):
        run(config, tmp_path / "run", devices=1)

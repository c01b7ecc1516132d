"""A study: which runs it makes of its matrix, and that none is made twice."""

import json

import pytest
from ml_collections import ConfigDict

from clipdef_jax import experiment, optimise_trigger, study
from clipdef_jax.errors import UserError


def part(name, **kwargs):
    return {"name": name, "kwargs": kwargs}


@pytest.fixture
def config():
    return ConfigDict(
        {
            "job": "clipdef_jax.study:run",
            "seed": 0,
            "init": "",
            "attack": {"plan": part("backdoor"), "trigger": part("badnet", style="yellow")},
            "loss": part("clip"),
            "pretrain": {"epochs": 3},
            "study": {
                "attacks": ("none", "sig"),
                "defences": ("cleanclip", "roclip"),
                "seeds": (0, 1),
                "sweep": False,
            },
            "attacks": {
                "none": {"attack": {"plan": part("none"), "trigger": part("none")}},
                "sig": {"attack": {"plan": part("backdoor"), "trigger": part("sig", alpha=0.3)}},
            },
            "defences": {
                "cleanclip": {
                    "loss": part("cleanclip", inmodal_weight=2.0),
                    "finetune": {"epochs": 2, "lr": 0.1},
                    "sweep": {
                        "finetune": {"lr": (0.1, 0.2)},
                        "loss": {"kwargs": {"inmodal_weight": (1.0, 4.0, 8.0)}},
                    },
                },
                "roclip": {"loss": part("roclip"), "pretrain": {"epochs": 4}},
            },
        }
    )


def test_cells_are_ordered_so_that_a_repair_finds_its_model(config):
    cells = list(study.cells_of(config))
    assert [cell.folder for cell in cells[:4]] == [
        "none/seed0/undefended",
        "sig/seed0/undefended",
        "sig/seed0/cleanclip",
        "sig/seed0/roclip",
    ]
    assert len(cells) == 2 * (1 + 3)


def test_names_are_chosen_and_checked(config):
    config.study.attacks = ("sig,none",)
    config.study.defences = ("roclip",)
    cells = {(cell.attack, cell.defence) for cell in study.cells_of(config)}
    assert cells == {("none", "undefended"), ("sig", "undefended"), ("sig", "roclip")}
    config.study.attacks = ("sgi",)
    with pytest.raises(UserError, match=r"study.attacks: there is no 'sgi'; the study has: none"):
        list(study.cells_of(config))


def test_a_cell_gets_the_parts_named_and_nothing_of_those_they_replace(config, tmp_path):
    undefended = study.config_of(config, study.Cell("sig", "undefended", 1), tmp_path)
    assert undefended.seed == 1
    assert undefended.job == "clipdef_jax.experiment:run"
    assert undefended.attack.trigger.to_dict() == part("sig", alpha=0.3)
    assert undefended.loss.name == "clip"

    repair = study.config_of(config, study.Cell("sig", "cleanclip", 1), tmp_path)
    assert repair.init == str(tmp_path / "sig/seed1/undefended/poisoned/model")
    assert "pretrain" not in repair
    assert repair.attack.plan.name == "none"  # its data are clean, its tests triggered
    assert repair.attack.trigger.name == "sig"

    pretraining = study.config_of(config, study.Cell("sig", "roclip", 1), tmp_path)
    assert pretraining.init == ""
    assert pretraining.pretrain.epochs == 4
    assert pretraining.attack.plan.name == "backdoor"

    assert config.attack.trigger.name == "badnet"  # the study's own fields stay as they are

    config.init = "mine"
    for defence, init in (("undefended", "mine"), ("cleanclip", "mine"), ("roclip", "")):
        assert study.config_of(config, study.Cell("sig", defence, 1), tmp_path).init == init


def test_an_attack_may_have_its_own_seeds_and_defences(config):
    config.attacks.sig.study = ConfigDict({"seeds": (1, 2), "defences": ("roclip",)})
    config.study.seeds, config.study.defences = (0, 1), ("cleanclip",)
    cells = [cell.folder for cell in study.cells_of(config)]
    assert cells == [
        *("none/seed0/undefended", "none/seed1/undefended"),
        *("sig/seed1/undefended", "sig/seed1/roclip"),
        *("sig/seed2/undefended", "sig/seed2/roclip"),
    ]
    config.attacks.sig.study.defences = ("rocklip",)
    with pytest.raises(UserError, match=r"study.defences: there is no 'rocklip'"):
        next(study.cells_of(config))


def test_a_patch_is_optimised_against_the_unpoisoned_model(config, tmp_path, monkeypatch):
    ran = []

    def fake(fields, folder, *, command):
        ran.append((folder.relative_to(tmp_path).as_posix(), fields))
        summary = {"results": [{"clean_top1": 0.9}], "seconds": {"total": 1.0}}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(experiment, "run", fake)
    monkeypatch.setattr(optimise_trigger, "run", fake)
    config.attacks.badclip = ConfigDict(
        {
            "attack": {
                "target": "frog",
                "plan": part("backdoor"),
                "trigger": part("badclip", path=""),
            },
            "search": {"epochs": 7},
        }
    )
    config.study.attacks, config.study.defences = ("badclip",), ("cleanclip",)
    config.study.seeds = (3,)
    study.run(config, tmp_path, command="")
    unpoisoned, patch, *cells = ran
    assert [folder for folder, _ in ran] == [
        "none/seed3/undefended",
        "badclip/seed3/patch",
        "badclip/seed3/undefended",
        "badclip/seed3/cleanclip",
    ]
    assert "search" not in unpoisoned[1]
    fields = patch[1]
    assert fields.init == str(tmp_path / "none/seed3/undefended/pretrained/model")
    assert (fields.seed, fields.search.epochs, fields.attack.target) == (3, 7, "frog")
    assert fields.attack.plan.name == "none"
    assert "pretrain" not in fields
    for _, fields in cells:
        path = str(tmp_path / "badclip/seed3/patch/trigger.npy")
        assert fields.attack.trigger.kwargs.path == path
        assert "search" not in fields

    config.attacks.badclip.attack.trigger.kwargs.path = "mine.npy"
    cell = study.Cell("badclip", "undefended", 3)
    assert study.config_of(config, cell, tmp_path).attack.trigger.kwargs.path == "mine.npy"


def test_a_sweep_runs_every_combination(config, tmp_path):
    assert "sweep" not in study.config_of(config, study.Cell("sig", "cleanclip", 1), tmp_path)
    config.study.sweep = True
    config.study.attacks, config.study.seeds = ("sig",), (0,)
    undefended, *swept, other = study.cells_of(config)
    assert undefended.setting == other.setting == ()  # What has no such section is run once.
    assert len(swept) == len({cell.folder for cell in swept}) == 6
    assert swept[1].name == "cleanclip: lr=0.1, inmodal_weight=4.0"
    assert swept[1].folder == "sig/seed0/cleanclip-lr=0.1-inmodal_weight=4.0"
    fields = study.config_of(config, swept[5], tmp_path)
    assert (fields.finetune.lr, fields.loss.kwargs.inmodal_weight) == (0.2, 8.0)
    assert fields.init == str(tmp_path / "sig/seed0/undefended/poisoned/model")
    assert "sweep" not in fields
    assert config.defences.cleanclip.finetune.lr == 0.1


def test_complete_cells_are_not_run_again(config, tmp_path, monkeypatch, capsys):
    ran, stop = [], 2

    def fake(fields, folder, *, command):
        if len(ran) == stop:
            raise KeyboardInterrupt
        ran.append(folder.relative_to(tmp_path).as_posix())
        row = {"model": "m", "clean_top1": 0.9, "asr_top1": fields.seed / 10}
        summary = {"results": [{"clean_top1": 0.1}, row], "seconds": {"total": 2.0}, "poisons": 7}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(experiment, "run", fake)
    with pytest.raises(KeyboardInterrupt):
        study.run(config, tmp_path, command="")
    assert not (tmp_path / "summary.json").exists()
    before, ran[:], stop = list(ran), [], None
    config.study.attacks = ("sig",)  # The study may be narrowed, or grow.
    config.study.defences = ("cleanclip",)
    summary = study.run(config, tmp_path, command="")
    assert "sig/seed0/undefended" in before
    assert ran == ["sig/seed0/cleanclip", "sig/seed1/undefended", "sig/seed1/cleanclip"]
    assert [row["asr_top1"] for row in summary["results"]] == [0.0, 0.0, 0.1, 0.1]
    assert summary["table"][0]["poisons"] == 7
    assert summary["seconds"]["cells"] == 8.0
    assert json.loads((tmp_path / "summary.json").read_text())["table"] == summary["table"]
    text = (tmp_path / "table.md").read_text()
    assert "| cleanclip | 90.0 ± 0.0 / 5.0 ± 7.1 (2) |" in text
    assert "| sig | cleanclip | 7 | 2 | 90.0 ± 0.0 | 5.0 ± 7.1 |" in text
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "± 7.1" in capsys.readouterr().out  # 0 and 10%: sd 7.1


def test_a_cell_of_another_config_is_not_taken_for_this_one(config, tmp_path, monkeypatch):
    def fake(fields, folder, *, command):
        raise AssertionError("must not run")

    monkeypatch.setattr(experiment, "run", fake)
    folder = tmp_path / "none/seed0/undefended"
    folder.mkdir(parents=True)
    fields = study.config_of(config, study.Cell("none", "undefended", 0), tmp_path)
    fields.pretrain.epochs = 99
    (folder / "config.json").write_text(json.dumps(fields.to_dict()))
    with pytest.raises(UserError, match=r"pretrain.epochs was 99, is 3"):
        study.run(config, tmp_path, command="")

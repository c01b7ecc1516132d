"""A survey: a study's cells, each scanned by its own model, in one table."""

import io
import json
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from clipdef_jax import models
from clipdef_jax.attacks import manifest, plan
from clipdef_jax.errors import UserError
from clipdef_jax.report import survey as report
from clipdef_jax.scan import job, survey
from configs import detect, pretrain
from tests.running import run_on
from tests.test_encode import CLIP, INIT, WORDS
from tests.test_scan import SOURCE, Scenes


def add_cell(study, attack, seed):
    """Leaves what a study leaves of a cell: a model, poisons, a config and a summary."""
    cell = study / attack / f"seed{seed}" / "undefended"
    models.save(cell / "poisoned" / "model", CLIP, INIT(jax.random.key(seed)))
    WORDS.save(cell / "poisoned" / "model")
    config = pretrain.get_config(f"attack={attack}")
    config.seed, config.data.train = seed, SOURCE
    config.pretrain.update(batch=16, epochs=5)
    (cell / "config.json").write_text(json.dumps(config.to_dict()))
    (cell / "summary.json").write_text(json.dumps({"results": [{"asr_top1": 0.5 + seed / 4}]}))
    attack = plan.Attack(target="frog", number=6, trigger="badnet", plan="backdoor", side=16)
    (cell / "poison").mkdir()
    made = plan.make_plan(Scenes(), attack)
    manifest.write_manifest(cell / "poison" / "manifest.jsonl", made)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for attack, seed in (("badnet", 0), ("badnet", 1), ("sig", 0)):
        add_cell(folder, attack, seed)
    # The model without poison, and a cell that is not complete: neither can be scanned.
    (folder / "none" / "seed0" / "undefended").mkdir(parents=True)
    add_cell(folder, "wanet", 0)
    (folder / "wanet" / "seed0" / "undefended" / "summary.json").unlink()
    return folder


def config_of(study, **fields) -> ConfigDict:
    config = detect.get_config("study")
    config.survey.update(study=str(study), methods=("dao", "kdist,clip_score"))
    config.embed.batch, config.embed.records_per_shard = 8, 25
    config.score.update(k=4, size=16, draws=2)
    config.flag.method = "dao"
    config.report.suspects = config.report.searched = 2
    config.update_from_flattened_dict(fields)
    return config


def run(config, workdir):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax, "clear_caches", lambda: None)
        return run_on(1, survey.run, config, workdir)


@pytest.fixture(scope="module")
def surveyed(study, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("survey") / "run"
    return workdir, run(config_of(study), workdir)


def test_each_cell_is_scanned_by_its_own_model(study, surveyed):
    workdir, summary = surveyed
    rows = summary["results"]
    assert [(row["attack"], row["seed"]) for row in rows] == [
        ("badnet", 0), ("badnet", 1), ("sig", 0),
    ]  # fmt: skip
    for row in rows:
        folder = f"{row['attack']}/seed{row['seed']}"
        scanned = json.loads((workdir / folder / "summary.json").read_text())
        assert row["quality"] == scanned["quality"]
        assert row["poisons"] == scanned["poisons"]
        assert scanned["config"]["init"] == f"{study}/{folder}/undefended/poisoned/model"
        assert scanned["config"]["seed"] == row["seed"]
    assert rows[0]["quality"] != rows[1]["quality"]
    assert json.loads((workdir / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_the_table_is_over_the_seeds(surveyed):
    workdir, summary = surveyed
    first, second = summary["table"]
    each = [row["quality"]["kdist"]["auroc"] for row in summary["results"][:2]]
    assert first["auroc"]["kdist"]["each"] == each
    assert first["auroc"]["kdist"]["mean"] == pytest.approx(np.mean(each))
    assert first["auroc"]["kdist"]["sd"] == pytest.approx(np.std(each, ddof=1))
    assert (first["seeds"], second["seeds"]) == ([0, 1], [0])
    assert first["success"] == pytest.approx(0.625)
    lines = (workdir / "table.md").read_text().splitlines()
    assert "| dao | kdist | clip_score | dao: FPR at 95% recall % |" in lines[0]
    assert re.match(r"\| badnet \| \d \| \d+ \| 2 \| 62.5 \| [\d.]+ ± [\d.]+ \|", lines[2])
    assert "±" not in lines[3]
    Image.open(io.BytesIO((workdir / "figure.png").read_bytes())).verify()


def test_it_grows_and_runs_nothing_twice(study, surveyed, monkeypatch):
    workdir, before = surveyed

    def never(*args, **kwargs):
        raise AssertionError("a complete cell was scanned again")

    monkeypatch.setattr(job, "run", never)
    some = {"survey.attacks": ("sig,badnet",), "survey.seeds": (0,)}
    rows = run(config_of(study, **some), workdir)["results"]
    assert rows == [before["results"][2], before["results"][0]]


def test_the_costly_detectors(study, surveyed):
    workdir, before = surveyed
    fields = {
        "survey.attacks": ("badnet",),
        "survey.methods": ("dao,kdist,clip_score", "abl,cd"),
        "survey.pictures": 8,
        "survey.epochs": 2,
    }
    summary = run(config_of(study, **fields), workdir)
    first, second = summary["results"]
    assert list(first["quality"]) == ["dao", "kdist", "clip_score", "abl", "cd"]
    assert second == before["results"][1]  # Of the seeds that are asked for only.
    folder = workdir / "badnet" / "seed0"
    epochs = [np.load(path) for path in (folder / "abl-2").glob("*.npz")]
    assert len(epochs) == 2
    scores = -(epochs[0]["losses"] + epochs[1]["losses"]) / 2
    hit = epochs[0]["is_poisoned"]
    assert hit.sum() == first["poisons"]
    assert len(hit) == first["pairs"]
    difference = scores[hit][:, None] - scores[~hit][None]
    auroc = (difference > 0).mean() + 0.5 * (difference == 0).mean()
    assert first["quality"]["abl"]["auroc"] == pytest.approx(auroc)
    assert 0 <= first["quality"]["cd"]["auroc"] <= 1
    assert (folder / "cd-8" / "stage.json").exists()
    assert [note[:3] for note in summary["notes"]] == ["abl", "cd:"]
    table = (workdir / "table.md").read_text()
    assert "cd: 8 pictures of seed 0" in table
    again = run(config_of(study, **fields), workdir)
    assert again["results"] == summary["results"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"survey.study": ""}, r"which study\? Give --config.survey.study=DIR"),
        ({"survey.study": "nowhere"}, r"survey.study=nowhere: there is no complete cell"),
        ({"survey.attacks": ("badnet,wanet",)}, r"has no complete cell of 'wanet'; .* badnet, sig"),
        ({"survey.seeds": (0, 1)}, r"sig has no complete cell of seed 1; it has 0"),
        ({"survey.methods": ("dao,knn",)}, r"'knn' is no detector"),
    ],
)
def test_mistakes_are_named(study, tmp_path, fields, message):
    if "survey.methods" not in fields:
        with pytest.raises(UserError, match=message):
            list(survey.cells_of(config_of(study, **fields).survey))
        return
    with pytest.raises(UserError, match=message):
        run(config_of(study, **fields), tmp_path / "run")


def test_a_detector_that_one_attack_lacks():
    def row(attack, seed, **aurocs):
        figures = {"fpr_at_95": 0.1, "recall_in_1": 0.25, "recall_in_5": 0.5}
        quality = {name: {"auroc": auroc, **figures} for name, auroc in aurocs.items()}
        return {
            "attack": attack, "seed": seed, "poisons": 40, "pairs": 4000, "psr_top1": 1.0,
            "quality": quality,
        }  # fmt: skip

    rows = [row("a", 0, dao=0.9, cd=0.7), row("a", 1, dao=0.8), row("b", 0, dao=0.6)]
    table = report.aggregate(rows, "dao")
    assert table[0]["auroc"]["cd"]["each"] == [0.7]
    lines = report.markdown(table).splitlines()
    assert lines[2] == (
        "| a | 40 | 1 | 2 | 100.0 | 85.0 ± 7.1 | 70.0 | 10.0 ± 0.0 | 25.0 ± 0.0 | 50.0 ± 0.0 |"
    )
    assert lines[3] == "| b | 40 | 1 | 1 | 100.0 | 60.0 | - | 10.0 | 25.0 | 50.0 |"
    assert Image.open(io.BytesIO(report.figure(table))).width > 500
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.terminal(table))
    said = console.export_text()
    assert re.search(r"a +85.0 +70.0 *\n", said)
    assert re.search(r"b +40 +1 +1 +100.0 +10.0 +25.0 +50.0 *\n", said)

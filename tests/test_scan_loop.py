"""The loop: which runs it makes of its config, and what it tells of them."""

import json

import pytest

from clipdef_jax import experiment
from clipdef_jax.errors import UserError
from clipdef_jax.scan import job, loop
from configs import detect


def test_each_part_gets_its_own_fields(tmp_path):
    config = detect.get_config("loop")
    before = loop.training_config(config)
    after = loop.training_config(config, tmp_path)
    scan = loop.scan_config(config, tmp_path)
    for fields in (before, after):
        assert fields.job == "clipdef_jax.experiment:run"
        assert "score" not in fields
        assert "finetune" not in fields
    assert "keep" not in before.pretrain
    assert before.attack.manifest == ""
    # The same poisons, and of these pairs those that the scan has kept.
    assert after.attack.manifest == scan.attack.manifest
    assert after.pretrain.keep == f"{tmp_path}/scan/keep.npy"
    assert scan.init == f"{tmp_path}/before/poisoned/model"
    assert "pretrain" not in scan
    assert scan.data.train == before.data.train == "emoji:train"
    assert "keep" not in config.pretrain  # The loop's own fields stay as they are.


def test_there_must_be_something_to_find(tmp_path):
    config = detect.get_config("loop,attack=none")
    with pytest.raises(UserError, match="the loop needs an attack to undo"):
        loop.run(config, tmp_path, command="")
    config = detect.get_config("loop")
    config.dry_run = True
    with pytest.raises(UserError, match="dry_run is for scans"):
        loop.run(config, tmp_path, command="")


def test_complete_parts_are_not_run_again(tmp_path, monkeypatch):
    ran, stop = [], "scan"
    training = {"results": [{"model": "poisoned", "clean_top1": 0.9, "asr_top1": 0.9}]}
    found = {
        "pairs": 100, "flagged": 5, "poisons": 4, "poisons_flagged": 3, "method": "dao",
        "quality": {"dao": {"auroc": 0.99}},
    }  # fmt: skip

    def fake(answer):
        def body(fields, folder, *, command):
            if folder.name == stop:
                raise KeyboardInterrupt
            ran.append(folder.name)
            summary = answer | {"seconds": {"total": 2.0}, "config": fields.to_dict()}
            (folder / "summary.json").write_text(json.dumps(summary))
            return summary

        return body

    monkeypatch.setattr(experiment, "run", fake(training))
    monkeypatch.setattr(job, "run", fake(found))
    config = detect.get_config("loop")
    with pytest.raises(KeyboardInterrupt):
        loop.run(config, tmp_path, command="")
    assert ran == ["before"]
    stop = None
    summary = loop.run(config, tmp_path, command="")
    assert ran == ["before", "scan", "after"]
    loop.run(config, tmp_path, command="")
    assert len(ran) == 3
    assert [row["model"] for row in summary["results"]] == ["poisoned", "cleaned"]
    assert "without 5 suspects, of which 3 poisoned" in summary["results"][1]["description"]
    assert summary["seconds"] == {"before": 2.0, "scan": 2.0, "after": 2.0, "total": 6.0}
    assert json.loads((tmp_path / "summary.json").read_text())["poisons_flagged"] == 3
    assert "cleaned" in (tmp_path / "report.html").read_text()

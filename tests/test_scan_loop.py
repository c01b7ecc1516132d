"""The loop: which runs it makes of its config, and what it tells of them."""

import json

import numpy as np
import pytest

from clipdef_jax import experiment
from clipdef_jax.data import ids
from clipdef_jax.errors import UserError
from clipdef_jax.scan import job, loop
from configs import detect

UIDS = [str(number) for number in range(100)]


def test_each_part_gets_its_own_fields(tmp_path):
    config = detect.get_config("loop")
    before = loop.training_config(config)
    after = loop.training_config(config, tmp_path, tmp_path / "scan" / "keep.npy")
    scan = loop.scan_config(config, tmp_path)
    for fields in (before, after):
        assert fields.job == "clipdef_jax.experiment:run"
        assert "score" not in fields
        assert "control" not in fields
        assert "finetune" not in fields
    assert "keep" not in before.pretrain
    assert before.attack.manifest == ""
    # The same poisons, and of these pairs those that the scan has kept.
    assert after.attack.manifest == scan.attack.manifest
    assert after.pretrain.keep == f"{tmp_path}/scan/keep.npy"
    assert scan.init == f"{tmp_path}/before/poisoned/model"
    assert "pretrain" not in scan
    assert "control" not in scan
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
            if folder.name == "scan":
                ids.write_ids(folder / "keep.npy", UIDS[5:])
                ids.write_ids(folder / "drop.npy", UIDS[:5])
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
    assert ran == ["before", "scan", "after", "random"]
    loop.run(config, tmp_path, command="")
    assert len(ran) == 4
    assert [row["model"] for row in summary["results"]] == ["poisoned", "cleaned", "random"]
    assert "without 5 suspects, of which 3 poisoned" in summary["results"][1]["description"]
    assert summary["seconds"] == {
        "before": 2.0, "scan": 2.0, "after": 2.0, "random": 2.0, "total": 8.0
    }  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["poisons_flagged"] == 3
    assert "cleaned" in (tmp_path / "report.html").read_text()


def test_the_control_drops_as_many_pairs_at_random(tmp_path):
    ids.write_ids(tmp_path / "keep.npy", UIDS[5:])
    ids.write_ids(tmp_path / "drop.npy", UIDS[:5])
    drawn = loop._at_random(tmp_path / "keep.npy", seed=0)
    listed, every = ids.read_ids(drawn), ids.read_ids(tmp_path / "keep.npy")
    assert len(listed) == len(every) == 95
    np.testing.assert_array_equal(np.load(drawn), listed)  # Sorted, each once.
    assert ids.contained(listed, ids.ids128(UIDS)).all()
    assert not ids.contained(ids.ids128(UIDS[:5]), every).any()
    left_out = [
        ~ids.contained(ids.ids128(UIDS), ids.read_ids(loop._at_random(tmp_path / "keep.npy", seed)))
        for seed in (0, 0, 1)
    ]
    assert (left_out[0] == left_out[1]).all()
    assert (left_out[0] != left_out[2]).any()

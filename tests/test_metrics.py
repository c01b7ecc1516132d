"""Metrics files: one line a step, none repeated after a resume, TensorBoard can read them."""

import json

from clipdef_jax.train import metrics


def test_lines_after_a_resume(tmp_path):
    with metrics.MetricsWriter(tmp_path, 0) as writer:
        for step in range(1, 6):
            writer.write(step, 1, {"loss": 1.0 / step})
    # A run stopped after step 5 whose last checkpoint is of step 3 repeats steps 4 and 5.
    with metrics.MetricsWriter(tmp_path, 3) as writer:
        writer.write(4, 2, {"loss": 0.125})
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1] == {"step": 4, "epoch": 2, "loss": 0.125}
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_lines_are_on_disk_at_once_and_a_cut_one_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsWriter(tmp_path, 0) as writer:
        writer.write(1, 1, {"loss": 0.5})
        assert json.loads(path.read_text())["loss"] == 0.5
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in metrics.read(path)] == [1]
    assert metrics.read(tmp_path / "missing.jsonl") == []

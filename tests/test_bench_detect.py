"""The benchmark of detectors: that it runs to its table, and that its rival is one."""

import json
import sys

import numpy as np
import pytest

from clipdef_jax import detect as detectors
from clipdef_jax.bench import __main__ as bench
from clipdef_jax.bench import detect


def test_the_released_way_finds_the_same():
    image, text = np.random.default_rng(0).normal(size=(2, 40, 8)).astype(np.float32)
    ours = detectors.score(image, text, method="slof", k=5)
    np.testing.assert_allclose(detect._released_slof(image, text, 5), ours, 1e-5)


# What FAISS was built with warns while it is imported.
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
def test_runs_to_its_table(monkeypatch, tmp_path, capsys):
    file = tmp_path / "detect.json"
    sizes = ("--points=600", "--queries=60", "--dim=8", "--k=5", "--pairs=40", "--pair-dim=8")
    monkeypatch.setattr(sys, "argv", ["bench", "detect", *sizes, "--repeats=1", f"--json={file}"])
    bench.main()
    rows = {row["what"]: row for row in json.loads(file.read_text())["rows"]}
    search, graph = rows["k-NN of 60 queries"], rows["k-NN graph, all pairs"]
    assert search["points/s"] == pytest.approx(60 / search["seconds"])
    assert search["GFLOP/s"] == pytest.approx(2e-9 * 60 * 600 * 8 / search["seconds"])
    # Half of all against all: each pair of points once.
    assert graph["GFLOP/s"] == pytest.approx(1e-9 * 600 * 599 * 8 / graph["seconds"])
    assert graph["peak GiB"] >= search["peak GiB"] > 0
    assert rows["  released code's way"]["ours is"].endswith(" x")
    assert "SLOF of 40 x 8" in capsys.readouterr().out


def test_more_queries_than_points_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "detect", "--points=10", "--queries=11"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--queries=11: expected 1 to 10" in capsys.readouterr().err

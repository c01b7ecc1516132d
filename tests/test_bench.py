"""Benchmarks: what they count, how they compare, and that each runs to its table."""

import json
import re
import sys

import jax
import pytest

from clipdef_jax import losses, models, sharding
from clipdef_jax.bench import __main__ as bench
from clipdef_jax.bench import timing, workload


def test_a_loss_costs_what_its_views_cost():
    clip = models.get("ViT-Ti/8")
    clean = workload.model_flops(clip, losses.get("cleanclip"), 8)
    assert clean == 2 * workload.model_flops(clip, losses.get("clip"), 8)


def test_what_a_loss_costs_itself():
    clip, rows = models.get("ViT-Ti/8"), 8
    dim = clip.config.embed_dim
    product = 2 * rows * rows * dim
    plain = workload.loss_flops(clip, losses.get("clip"), rows)
    assert plain == 3 * product  # Forward, and backward to either side.
    pooled = workload.loss_flops(clip, losses.get("roclip", pool_size=64, every=1), rows)
    assert pooled - plain == 2 * rows * 64 * dim  # The look-up; it has no gradient.
    for name in losses.BUILTIN:
        assert workload.loss_flops(clip, losses.get(name), rows) >= 0


@pytest.mark.parametrize("name", sorted(losses.BUILTIN))
def test_every_loss_has_a_step_to_be_timed(name):
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        work = workload.Workload(models.get("ViT-Ti/8"), name, 8, mesh, "none")
        _, metrics = jax.eval_shape(work._step, work._state, work._batch)
    assert metrics["loss"].shape == ()


def test_rivals_take_turns():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = timing.in_turn(runs, repeats=2, warmup=1)
    assert order == ["a", "b", *"abab"]
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert timing.ratio({"a": [2.0, 9.0, 3.0], "b": [1.0, 1.0, 1.0]}, "a", "b") == 3.0


def test_a_column_nobody_has_is_left_out(capsys):
    rows = [{"what": "x", "s": 1.5, "GiB": None}, {"what": "y", "s": None, "GiB": None}]
    timing.Result("t", rows).show()
    out = capsys.readouterr().out
    assert "1.5" in out
    assert "GiB" not in out


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench.main()


def test_train_prints_and_writes_its_figures(monkeypatch, tmp_path, capsys):
    file = tmp_path / "new" / "train.json"
    small = ("--model=ViT-Ti/8", "--batch=8", "--repeats=1")
    run(monkeypatch, "train", *small, f"--json={file}")
    written = json.loads(file.read_text())
    row = written["rows"][0]
    assert row["pairs/s"] == pytest.approx(8 / row["step s"])
    assert row["compile s"] > 0
    assert row["from cache s"] > 0
    assert written["hardware"]
    assert "jax" in written["versions"]
    assert "ViT-Ti/8" in capsys.readouterr().out


def test_data_measures_every_stage(monkeypatch, tmp_path, capsys):
    file = tmp_path / "data.json"
    source = "--source=emoji:train,size=64,side=32"
    few = ("--side=32", "--batch=8", "--records=16", "--workers", "0")
    run(monkeypatch, "data", source, *few, f"--json={file}")
    rates = {row["what"]: row["pairs/s"] for row in json.loads(file.read_text())["rows"]}
    assert {"read", "decode to 32 px", "trigger wanet", "batches, threads"} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--batch=none"], r"--batch=none: expected a positive number"),
        (["train", "--batch=max", "--model=ViT-Ti/8"], r"for devices with memory of their own"),
        (["data", "--source=emoji:train,size=4"], r"4 records, expected two batches"),
        (["data", "--source=emojis:train"], r"did you mean 'emoji'"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)

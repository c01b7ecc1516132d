"""Benchmarks: what they count, how they compare, and that each runs to its table."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from clipdef_jax import flops, losses, models, sharding
from clipdef_jax.bench import __main__ as bench
from clipdef_jax.bench import timing, workload

# The profile's ResNet pools from all 50 positions, of which one is used: 49 queries and outputs.
_UNUSED = 49 * 2 * (2048 * 2048 + 2048 * 1024) / 1e9


@pytest.mark.parametrize(
    ("name", "image"), [("RN50", 12.22 - _UNUSED), ("ViT-B/32", 8.82), ("ViT-B/16", 35.13)]
)
def test_counts_what_a_public_profile_counts(name, image):
    """Of the original shapes; the profile's numbers are GFLOP, a multiply-add as two."""
    clip = models.get(name)
    params = jax.eval_shape(clip.init, jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    assert flops.count(clip.encode_image, params, pixels) / 1e9 == pytest.approx(image, rel=0.005)
    text = flops.count(clip.encode_text, params, tokens) / 1e9
    assert text == pytest.approx(5.96, rel=0.005)


def test_counts_inside_loops_branches_and_calls():
    weight = jnp.ones((3, 5))

    def once(x_4x3):
        return (x_4x3 @ weight)[:, :3]

    single = 2 * 4 * 3 * 5
    x = jnp.ones((4, 3))
    assert flops.count(once, x) == single
    assert flops.count(jax.jit(once), x) == single
    assert flops.count(jax.checkpoint(once), x) == single
    looped = flops.count(lambda x: jax.lax.scan(lambda c, _: (once(c), None), x, length=7)[0], x)
    assert looped == 7 * single
    branched = flops.count(lambda x: jax.lax.cond(x[0, 0] > 0, once, lambda x: x, x), x)
    assert branched == single


def test_a_loss_costs_what_its_views_cost():
    clip = models.get("ViT-Ti/8")
    clean = workload.model_flops(clip, losses.get("cleanclip"), 8)
    assert clean == 2 * workload.model_flops(clip, losses.get("clip"), 8)


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

"""The plots of a run."""

import re
from importlib import resources

import numpy as np
import pytest

from clipdef_jax.report import figures
from tests.test_report import POISONED, RESULTS, result


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        ([], None),
        ([{"step": 1, "epoch": 1}], None),
        ([{"step": 1, "loss": float("nan")}], None),
        ([{"step": 1, "loss": 2.0}], 1),
        ([{"step": 1, "clean_top1": 0.5}], 1),
        ([{"step": 1, "loss": 2.0}, {"step": 2, "asr_top1": 0.5}], 2),
    ],
)
def test_curves_of_little(rows, panels):
    plot = figures.curves(rows, 0)
    assert (plot and len(plot.axes)) == panels
    assert plot is None or "<svg" in figures.svg(plot, "a", "b")


def test_a_long_curve_is_averaged_not_sampled():
    values = np.random.default_rng(0).random(1200)
    rows = [{"step": step, "loss": value} for step, value in enumerate(values)]
    line = figures.curves(rows, 0).axes[0].lines[0]
    assert len(line.get_ydata()) == 120
    np.testing.assert_allclose(line.get_ydata(), values.reshape(120, 10).mean(axis=1))


def test_ca_asr_has_a_labelled_point_and_an_arrow_per_model():
    axes = figures.ca_asr([*RESULTS, {"model": "unmeasured"}]).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[row["asr_top1"], row["clean_top1"]]] for row in RESULTS
    ]
    assert {label.get_text() for label in axes.texts} - {""} == {
        "removed", "poisoned", "finetuned", "cleanclip"
    }  # fmt: skip
    assert sum(getattr(label, "arrow_patch", None) is not None for label in axes.texts) == 2
    assert figures.ca_asr([{"model": "m", "clean_top1": 0.5}]) is None


def test_labels_of_models_that_agree_are_apart():
    rows = [POISONED, *(result(f"d{index}", 0.9, 0.02) for index in range(4))]
    axes = figures.ca_asr(rows).axes[0]
    heights = sorted(label.xy[1] for label in axes.texts if label.get_text().startswith("d"))
    low, high = axes.get_ylim()
    assert min(np.diff(heights)) >= 0.06 * (high - low)


def test_figures_take_the_colours_of_the_page():
    style = (resources.files("clipdef_jax") / "assets/report/style.css").read_text("utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#\w{6});", style[: style.index("}")]))
    dark = dict(re.findall(r"(--[\w-]+): (#\w{6});", style[style.index("dark)") :]))
    for value, variable in figures.VARIABLES.items():
        assert light[variable] == value
        assert dark[variable] != value
    drawn = figures.svg(figures.ca_asr(RESULTS), "a", "b")
    assert "var(--series-2)" in drawn
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)

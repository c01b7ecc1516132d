"""The page of a scan: whole, safe whatever a caption holds, and silent about what is not known."""

import math

import numpy as np
import pytest

from clipdef_jax.detect import quality
from clipdef_jax.report import ScanReport, score_figures, write_scan
from clipdef_jax.report.scan_page import scan_page
from clipdef_jax.report.suspects import Group, Suspect, Thumbnail
from tests.test_report import HOSTILE, Reader, pixels


def full_report(**changes):
    rng = np.random.default_rng(0)
    is_poisoned = np.arange(500) < 25
    scores = rng.normal(size=500) + 3 * is_poisoned
    shown = Thumbnail(pixels(0), HOSTILE)
    near = (Thumbnail(pixels(1), "a frog", 0.5), Thumbnail(None, "a dog", 1.25))
    fields = {
        "title": "25 of 500 pairs are suspect",
        "subtitle": HOSTILE,
        "lead": "dao flags 25 of 500 pairs.",
        "facts": {"neighbours": 16},
        "quality": {"dao": quality.figures(scores, is_poisoned)},
        "curves": {"dao": quality.thinned(quality.curves(scores, is_poisoned))},
        "histograms": {"dao": score_figures.histogram(scores, is_poisoned, 2.0)},
        "captions": [Group(HOSTILE, 7, 9, 6, [shown] * 3)],
        "images": [Group("a frog", 5)],
        "suspects": [
            Suspect(HOSTILE, shown, {"dao": 3.25}, True, True, near),
            Suspect("b", Thumbnail(None, ""), {"dao": 2.5}, False, False),
        ],
        "notes": ["Flagged pairs are candidates."],
        "seconds": {"embed": 3.0},
        "config": "seed: 0",
        "versions": {"jax": "0.10.2"},
        "command": "python -m clipdef_jax.main",
    }
    return ScanReport(**(fields | changes))


def test_all_of_it(tmp_path):
    write_scan(tmp_path / "report.html", full_report())
    markup = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Reader(markup)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(name.startswith(("data:image/png;base64,", "#")) for name in page.references)
    assert "script" not in page.elements
    for text in (
        "25 of 500 pairs are suspect",
        '<script>alert("1")</script>',
        "7 flagged, 9 in the data, 6 poisoned",
        "5 flagged",
        "no picture",
        "dao 3.250",
        "not flagged",
        "1.25 a dog",
        "Average precision",
    ):
        assert text in page.text
    assert markup == scan_page(full_report())


def test_what_is_not_known_is_left_out():
    page = Reader(scan_page(ScanReport("t", "s", "l")))
    assert page.open == []
    assert "section" not in page.elements
    unknown = Suspect("a", Thumbnail(None, "x"), {"dao": 1.0}, True)
    text = Reader(scan_page(ScanReport("t", "s", "l", suspects=[unknown]))).text
    assert "clean" not in text
    assert "poisoned" not in text


@pytest.mark.parametrize("threshold", [None, 2.0, 60.0, math.inf])
def test_a_histogram_counts_every_pair(threshold):
    rng = np.random.default_rng(0)
    scores = np.append(rng.normal(size=997), [50, 1e6, 1e30])
    is_poisoned = scores > 1
    counted = score_figures.histogram(scores, is_poisoned, threshold)
    assert counted.all.sum() == 1000
    assert counted.poisoned.sum() == is_poisoned.sum()
    # Outliers do not stretch the axis, but the threshold is on it.
    assert counted.edges[-1] == max(np.quantile(scores, 0.995), 60 if threshold == 60 else 0)
    assert counted.all[-1] >= 3 if threshold != 60 else counted.all[-1] >= 2
    score_figures.spread(counted)


def test_equal_scores_have_a_histogram_too():
    counted = score_figures.histogram(np.ones(5), None, None)
    assert counted.all.sum() == 5
    assert counted.poisoned is None

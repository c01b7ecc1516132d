"""Figures of detectors, against counting."""

import numpy as np
import pytest

from clipdef_jax.detect import quality


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    is_poisoned = rng.random(400) < 0.1
    # Few values, so there are ties between poisoned and clean pairs.
    return np.round(rng.normal(size=400) + 1.5 * is_poisoned, 1).astype(np.float32), is_poisoned


def test_auroc_is_the_chance_of_the_right_order(scored):
    scores, is_poisoned = scored
    difference = scores[is_poisoned][:, None] - scores[~is_poisoned][None]
    expected = (difference > 0).mean() + 0.5 * (difference == 0).mean()
    assert quality.figures(scores, is_poisoned)["auroc"] == pytest.approx(expected)


def test_the_other_figures_by_counting_at_each_threshold(scored):
    scores, is_poisoned = scored
    recalls, precisions, rates = [0.0], [1.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        flagged = scores >= threshold
        recalls.append(is_poisoned[flagged].sum() / is_poisoned.sum())
        precisions.append(is_poisoned[flagged].mean())
        rates.append((flagged & ~is_poisoned).sum() / (~is_poisoned).sum())
    found = quality.figures(scores, is_poisoned)
    area = sum((b - a) * p for a, b, p in zip(recalls, recalls[1:], precisions[1:], strict=False))
    assert found["average_precision"] == pytest.approx(area)
    by_recall = list(zip(recalls, rates, strict=True))
    assert found["fpr_at_95"] == min(rate for recall, rate in by_recall if recall >= 0.95)
    assert found["fpr_at_100"] == min(rate for recall, rate in by_recall if recall == 1)
    top = sorted(range(400), key=lambda row: (-scores[row], row))
    for percent in (1, 5):
        hits = is_poisoned[top[: 4 * percent]].sum()
        assert found[f"recall_in_{percent}"] == hits / is_poisoned.sum()
    curves = quality.curves(scores, is_poisoned)
    np.testing.assert_allclose(curves, [rates, recalls, precisions])


def test_perfect_and_useless_scores():
    is_poisoned = np.arange(100) < 5
    perfect = quality.figures(is_poisoned * 1.0, is_poisoned)
    assert perfect.pop("recall_in_1") == 0.2
    assert set(perfect.values()) == {1.0, 0.0}
    useless = quality.figures(np.zeros(100), is_poisoned)
    assert useless["auroc"] == 0.5
    assert useless["fpr_at_95"] == 1.0


def test_a_thinned_curve_keeps_its_ends_and_its_area():
    rng = np.random.default_rng(0)
    is_poisoned = rng.random(20_000) < 0.1
    rates = quality.curves(rng.normal(size=20_000) + is_poisoned, is_poisoned)
    few = quality.thinned(rates)
    assert len(few.recall) < 500 < len(rates.recall)
    for whole, part in zip(rates, few, strict=True):
        assert (whole[0], whole[-1]) == (part[0], part[-1])
    area = np.trapezoid(few.recall, few.false_positive_rate)
    assert area == pytest.approx(np.trapezoid(rates.recall, rates.false_positive_rate), abs=1e-3)

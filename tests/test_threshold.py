"""Which pairs are flagged."""

import math

import numpy as np
import pytest
import scipy.stats

from clipdef_jax.detect.threshold import beyond_chance, flag
from clipdef_jax.errors import UserError


def test_a_fraction_is_flagged_exactly_and_ties_go_to_the_earlier():
    scores = np.array([1, 5, 5, 5, 0, 9, 2, 3, 4, 1], np.float32)
    flags = flag(scores, by="fraction", fraction=0.3)
    assert np.flatnonzero(flags.flagged).tolist() == [1, 2, 5]
    assert flags.threshold == 5
    assert flags.rule == "the 30% with the highest scores"


def test_a_score_flags_all_that_reach_it():
    scores = np.array([1.0, 2.0, 3.0], np.float32)
    assert flag(scores, by="score", score=2.0).flagged.tolist() == [False, True, True]
    none = flag(scores, by="score", score=4.0)
    assert not none.flagged.any()
    assert none.threshold == math.inf


@pytest.mark.parametrize(("number", "shift"), [(20, 8.0), (200, 6.0), (2000, 5.0)])
def test_auto_finds_suspects_above_the_others(number, shift):
    rng = np.random.default_rng(0)
    clean, suspect = rng.normal(3, 2, size=20_000), rng.normal(3 + 2 * shift, 2, size=number)
    flags = flag(np.concatenate([clean, suspect]), by="auto")
    assert flags.flagged[20_000:].mean() > 0.95
    # A tenth is allowed to be clean; the suspects themselves move the quartiles a little.
    assert flags.flagged[:20_000].sum() <= 0.15 * flags.flagged.sum()
    assert flags.assumption == "the scores of clean pairs are normally distributed"


def test_auto_flags_as_many_as_the_rule_allows():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=2000), rng.normal(4, 1, size=100)])
    ranked = np.sort(scores)[::-1]
    middle, upper = np.quantile(scores, [0.5, 0.75])
    spread = (upper - middle) / scipy.stats.norm.ppf(0.75)
    allowed = [
        number
        for number, score in enumerate(ranked, start=1)
        if 2100 * scipy.stats.norm(middle, spread).sf(score) <= 0.1 * number
    ]
    assert flag(scores, by="auto").flagged.sum() == max(allowed)


def test_auto_flags_nothing_that_chance_explains():
    rng = np.random.default_rng(0)
    for scores in (np.ones(50), rng.uniform(size=5000)):
        assert beyond_chance(scores) == math.inf
    flags = flag(scores, by="auto")
    assert not flags.flagged.any()
    assert "none, as chance explains" in flags.rule
    # Of normally distributed scores in one case of ten.
    found = [math.isfinite(beyond_chance(rng.normal(size=2000))) for _ in range(100)]
    assert sum(found) <= 20


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"by": "fraction", "fraction": 0.0}, r"flag.fraction=0.0: expected a share above 0"),
        ({"by": "fraction", "fraction": 1.5}, r"flag.fraction=1.5"),
        ({"by": "knee"}, r"flag.by='knee': expected one of fraction, score, auto"),
    ],
)
def test_what_cannot_be_is_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        flag(np.zeros(4), **kwargs)

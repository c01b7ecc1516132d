"""From scores to the pairs that are candidates for removal."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from clipdef_jax.errors import UserError

BY = ("fraction", "score", "auto")

# The share of flagged pairs that "auto" allows to be clean, by its own assumption.
_FALSE_DISCOVERIES = 0.1
# The upper quartile of a standard normal distribution.
_QUARTILE = 0.6744897501960817


class Flags(NamedTuple):
    """Which pairs are flagged, and why these.

    Attributes:
      flagged: bool (N,).
      threshold: the lowest score that is flagged; inf where none is.
      rule: the same for people.
      assumption: what the rule rests on, if it assumes anything.
    """

    flagged: np.ndarray
    threshold: float
    rule: str
    assumption: str = ""


def flag(scores: np.ndarray, *, by: str, fraction: float = 0.01, score: float = 0.0) -> Flags:
    """Flags the pairs with the highest scores.

    Args:
      scores: (N,), finite; higher is more suspect.
      by: "fraction": the `fraction` of the pairs with the highest scores, the earlier one first
        among equals. "score": all that reach `score`. "auto": those whose scores are beyond
        chance; see `beyond_chance`.
      fraction: 0 to 1, exclusive.
      score: in the unit of the scores.

    Raises:
      UserError: an argument is out of range.
    """
    assumption = ""
    if by == "fraction":
        if not 0 < fraction < 1:
            raise UserError(f"flag.fraction={fraction}: expected a share above 0 and below 1")
        flagged = np.zeros(len(scores), bool)
        flagged[np.argsort(-scores, kind="stable")[: round(fraction * len(scores))]] = True
        rule = f"the {fraction:.3%} with the highest scores".replace(".000%", "%")
    elif by == "score":
        flagged = scores >= score
        rule = f"scores of at least {score:g}"
    elif by == "auto":
        split = beyond_chance(scores)
        flagged = scores >= split
        rule = (
            f"scores of at least {split:.4g}, of which chance explains a tenth"
            if math.isfinite(split)
            else "none, as chance explains the highest scores"
        )
        assumption = "the scores of clean pairs are normally distributed"
    else:
        raise UserError(f"flag.by={by!r}: expected one of {', '.join(BY)}")
    threshold = float(scores[flagged].min()) if flagged.any() else math.inf
    return Flags(flagged, threshold, rule, assumption)


def beyond_chance(scores: np.ndarray) -> float:
    """Returns from which score on there are more pairs than chance explains, inf if from none.

    Assumes two groups: clean pairs, whose scores are normally distributed, and a few suspects above
    them. The median and the upper quartile of all scores give the normal distribution: the few
    hardly move them. Flagged are as many pairs as can be with at most a tenth of them expected from
    it. Where clean scores have a heavier tail than that, rare but honest pairs are flagged, too.

    Args:
      scores: (N,), finite.

    References:
      Efron 2004, `Large-scale simultaneous hypothesis testing: the choice of a null hypothesis`;
      Benjamini and Hochberg 1995, `Controlling the false discovery rate`. Their use on detectors'
      scores is this project's own.
    """
    ranked = np.sort(scores.astype(np.float64))[::-1]
    middle, upper = np.quantile(ranked, (0.5, 0.75))
    if not upper > middle:
        return math.inf
    z = (ranked[ranked > upper] - middle) / (upper - middle) * _QUARTILE
    chance = len(ranked) / 2 * np.array([math.erfc(value) for value in z / math.sqrt(2)])
    allowed = _FALSE_DISCOVERIES * np.arange(1, len(z) + 1)
    beyond = np.flatnonzero(chance <= allowed)
    return float(ranked[beyond[-1]]) if len(beyond) else math.inf

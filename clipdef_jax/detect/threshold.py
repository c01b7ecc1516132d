"""From scores to the pairs that are candidates for removal."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from clipdef_jax.errors import UserError

BY = ("fraction", "score", "auto")

# Of the fit: bins of the histogram, shares of the upper group to start from, iterations.
_BINS = 2048
_STARTS = (0.001, 0.01, 0.05, 0.2)
_ITERATIONS = 500
# Ashman's D of two groups that can be told apart.
_LEAST_DISTANCE = 2.0
# A group that is no minority is not what is looked for.
_LARGEST_SHARE = 0.5


class Flags(NamedTuple):
    """Which pairs are flagged, and why these.

    Attributes:
      flagged: bool (N,).
      threshold: the lowest score that is flagged; inf where none is.
      rule: the same for people.
    """

    flagged: np.ndarray
    threshold: float
    rule: str


def flag(scores: np.ndarray, *, by: str, fraction: float = 0.01, score: float = 0.0) -> Flags:
    """Flags the pairs with the highest scores.

    Args:
      scores: (N,), finite; higher is more suspect.
      by: "fraction": the `fraction` of the pairs with the highest scores, the earlier one first
        among equals. "score": all that reach `score`. "auto": those that belong rather to the
        upper one of two groups; see `two_groups`. None where there are no two.
      fraction: 0 to 1, exclusive.
      score: in the unit of the scores.

    Raises:
      UserError: an argument is out of range.
    """
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
        split = two_groups(scores)
        flagged = scores >= split
        rule = (
            f"scores of at least {split:.4g}, the upper of two groups: assumes that scores are a "
            "mixture of two normal distributions, the poisoned pairs being the minor upper one"
            if math.isfinite(split)
            else "nothing: no second group stands out of the scores, which the rule 'auto' assumes"
        )
    else:
        raise UserError(f"flag.by={by!r}: expected one of {', '.join(BY)}")
    return Flags(flagged, float(scores[flagged].min()) if flagged.any() else math.inf, rule)


def two_groups(scores: np.ndarray) -> float:
    """Returns where the upper one of two groups of scores begins, inf if there are no two.

    Assumes that the scores are a mixture of two normal distributions, of which the minor upper one
    are the poisoned pairs: fits it (EM, on a histogram), and takes the score between the means
    where both are equally likely. There are two groups if Ashman's D of the means is above 2 and
    the upper group is the minority. Poisons fewer than the clean distribution's own tail do not
    make a group; flag a fraction then.

    Args:
      scores: (N,), finite.

    References:
      Ashman, Bird and Zepf 1994, `Detecting bimodality in astronomical datasets`.
    """
    low, high = float(scores.min()), float(scores.max())
    if not high > low:
        return math.inf
    counts, edges = np.histogram(scores.astype(np.float64), _BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    filled = counts > 0
    fits = [_fit(centres[filled], counts[filled], start) for start in _STARTS]
    _, shares, means, spreads = max(fits, key=lambda fit: fit[0])
    distance = math.sqrt(2) * (means[1] - means[0]) / math.hypot(*spreads)
    if distance <= _LEAST_DISTANCE or shares[1] >= _LARGEST_SHARE:
        return math.inf
    between = np.linspace(means[0], means[1], 10_001)
    likely = _log_densities(between, shares, means, spreads)
    return float(between[np.argmax(likely[1] >= likely[0])])


def _fit(
    values: np.ndarray, counts: np.ndarray, start: float
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the log-likelihood, shares, means and deviations, the higher mean second."""
    floor = (values[-1] - values[0]) / _BINS
    rank = np.cumsum(counts) / counts.sum()
    upper = (rank > 1 - start).astype(np.float64)
    upper[-1] = 1.0
    weights = np.stack([1 - upper, upper]) * counts
    likelihood = -math.inf
    for _ in range(_ITERATIONS):
        mass = weights.sum(axis=1) + 1e-9
        means = (weights @ values) / mass
        spreads = np.sqrt((weights * (values - means[:, None]) ** 2).sum(axis=1) / mass)
        spreads = np.maximum(spreads, floor)
        shares = mass / mass.sum()
        densities = _log_densities(values, shares, means, spreads)
        total = np.logaddexp(*densities)
        before, likelihood = likelihood, float(counts @ total)
        if abs(likelihood - before) < 1e-9 * abs(likelihood):
            break
        weights = np.exp(densities - total) * counts
    order = np.argsort(means)
    return likelihood, shares[order], means[order], spreads[order]


def _log_densities(
    values: np.ndarray, shares: np.ndarray, means: np.ndarray, spreads: np.ndarray
) -> np.ndarray:
    """Returns the logarithms (2, n) of the shares' densities at the values."""
    z = (values - means[:, None]) / spreads[:, None]
    return np.log(shares / spreads)[:, None] - z**2 / 2

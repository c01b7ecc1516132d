"""How well scores tell poisoned pairs from clean ones, where it is known which are which."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Points of a curve that are kept for a plot.
_POINTS = 400


class Curves(NamedTuple):
    """Rates at every threshold, from none flagged to all: (T,) each.

    Attributes:
      false_positive_rate: share of the clean pairs that are flagged.
      recall: share of the poisoned pairs that are flagged.
      precision: share of the flagged pairs that are poisoned; 1 where none is flagged.
    """

    false_positive_rate: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def curves(scores: np.ndarray, is_poisoned: np.ndarray) -> Curves:
    """Returns the rates at every threshold.

    Args:
      scores: (N,), finite; higher is more suspect.
      is_poisoned: bool (N,), some of each.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(is_poisoned[order])
    # Equal scores are flagged together.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true, flagged = hits[last], last + 1
    clean = len(scores) - hits[-1]
    return Curves(
        np.append(0.0, (flagged - true) / clean),
        np.append(0.0, true / hits[-1]),
        np.append(1.0, true / flagged),
    )


def figures(scores: np.ndarray, is_poisoned: np.ndarray) -> dict[str, Any]:
    """Returns the figures of a detector.

    Args:
      scores: (N,), finite; higher is more suspect.
      is_poisoned: bool (N,), some of each.

    Returns:
      "auroc"; "average_precision", the area under precision over recall by steps; "fpr_at_95", the
      lowest share of clean pairs flagged where 95% of the poisoned ones are, and "fpr_at_100";
      "recall_in_1", the share of the poisoned pairs among the 1% of all pairs with the highest
      scores, and "recall_in_5".
    """
    rates = curves(scores, is_poisoned)
    fpr, recall, precision = rates
    order = np.argsort(-scores, kind="stable")
    in_top = {
        f"recall_in_{percent}": float(
            is_poisoned[order[: round(percent / 100 * len(scores))]].sum() / is_poisoned.sum()
        )
        for percent in (1, 5)
    }
    return {
        "auroc": float(np.trapezoid(recall, fpr)),
        "average_precision": float((np.diff(recall) * precision[1:]).sum()),
        "fpr_at_95": float(fpr[np.argmax(recall >= 0.95)]),
        "fpr_at_100": float(fpr[np.argmax(recall >= 1.0)]),
        **in_top,
    }


def thinned(rates: Curves) -> Curves:
    """Returns curves with few enough points for a plot, evenly along recall and clean pairs."""
    along = rates.recall + rates.false_positive_rate
    wanted = np.linspace(0, along[-1], _POINTS)
    kept = np.unique(np.append(np.searchsorted(along, wanted), [0, len(along) - 1]))
    return Curves(*(rate[np.minimum(kept, len(along) - 1)] for rate in rates))

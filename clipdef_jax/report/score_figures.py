"""The plots of scores: how they are spread, and how well they tell poisoned pairs from others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clipdef_jax.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 80
# Where density ratios of coinciding points lie, far above all others, a plot would show these only.
_SHOWN = 0.995


class Histogram(NamedTuple):
    """The spread of a detector's scores.

    Attributes:
      edges: (B + 1,) of the bins.
      all: (B,) pairs in each.
      poisoned: (B,) poisoned ones, None where they are not known.
      threshold: from which on pairs are flagged; None for a detector that does not flag.
    """

    edges: np.ndarray
    all: np.ndarray
    poisoned: np.ndarray | None = None
    threshold: float | None = None


def histogram(
    scores: np.ndarray, is_poisoned: np.ndarray | None, threshold: float | None
) -> Histogram:
    """Counts scores (N,) in bins, those of the last half percent in the last bin.

    Args:
      scores: (N,).
      is_poisoned: bool (N,), or None where that is not known.
      threshold: as in `Histogram`.
    """
    scores = scores.astype(np.float64)
    low, high = scores.min(), np.quantile(scores, _SHOWN)
    if threshold is not None and math.isfinite(threshold):
        high = max(high, threshold)
    scores = np.minimum(scores, high)
    counts, edges = np.histogram(scores, _BINS, (low, high))
    hits = None if is_poisoned is None else np.histogram(scores[is_poisoned], edges)[0]
    return Histogram(edges, counts, hits, threshold)


def spread(counted: Histogram) -> Figure:
    """Plots a histogram, its counts on a logarithmic axis: poisoned pairs are few."""
    with figures.defaults():
        figure, axes = figures.new_axes(3.6, 1.9)
        axes.stairs(counted.all, counted.edges, fill=True, color=figures.SERIES[1], alpha=0.45)
        if counted.poisoned is not None:
            axes.stairs(counted.poisoned, counted.edges, fill=True, color=figures.SERIES[0])
        if counted.threshold is not None and math.isfinite(counted.threshold):
            axes.axvline(counted.threshold, color=figures.INK, linestyle="--", linewidth=1.2)
        axes.set_yscale("log")
        axes.set_ylim(0.7, None)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.set(xlabel="Score", ylabel="Pairs")
    return figure


def rates(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Plots recall over the share of clean pairs flagged, and precision over recall.

    Args:
      curves: by detector, share of clean pairs flagged, recall and precision.
    """
    with figures.defaults():
        figure, roc, pr = figures.new_axes(7.2, 3.4, 1, 2)
        for index, (name, (false_positive_rate, recall, precision)) in enumerate(curves.items()):
            style = {"color": figures.colour(index), "linewidth": 1.5, "label": name}
            roc.plot(false_positive_rate, recall, **style)
            pr.step(recall, precision, where="post", **style)
        for axes in (roc, pr):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
            figures.percent_axes(axes.xaxis, axes.yaxis)
            axes.tick_params(labelleft=True)
        roc.set(xlabel="Clean pairs flagged", ylabel="Poisoned pairs flagged (recall)")
        pr.set(xlabel="Recall", ylabel="Precision")
        figure.legend(
            *roc.get_legend_handles_labels(),
            loc="outside upper center",
            frameon=False,
            fontsize=8,
            labelcolor=figures.MUTED,
            ncols=min(len(curves), 6),
        )
    return figure

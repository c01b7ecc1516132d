"""Figures over several seeds: their mean and spread, and how a table writes them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

WORDS = ("attack", "defence", "setting")
"""Columns that are no numbers."""


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Returns "mean", "sd" (of the sample; 0 for one value) and "each" of some values."""
    each = list(values)
    sd = statistics.stdev(each) if len(each) > 1 else 0.0
    return {"mean": statistics.fmean(each), "sd": sd, "each": each}


def percent(mean: float, sd: float, seeds: int) -> str:
    """Returns a share in per cent, and its spread if there is more than one seed.

    >>> percent(0.5, 0.012, 3)
    '50.0 ± 1.2'
    """
    return f"{100 * mean:.1f} ± {100 * sd:.1f}" if seeds > 1 else f"{100 * mean:.1f}"


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, numbers to the right; the first row is its heading."""
    heading, *lines = cells
    rule = ["---" if name in WORDS else "---:" for name in heading]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *lines))

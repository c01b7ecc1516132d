"""Figures over several seeds: their mean and spread, and how a table writes them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table

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


def terminal(cells: Sequence[Sequence[str]], grouped_by: int) -> Table:
    """Lays a table out for a terminal, numbers to the right.

    Args:
      cells: the first row is its heading.
      grouped_by: so many first columns; where these change, a line is left free.
    """
    heading, *lines = cells
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in heading:
        sheet.add_column(name, justify="left" if name in WORDS else "right")
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        ends = following is None or following[:grouped_by] != line[:grouped_by]
        sheet.add_row(*line, end_section=ends)
    return sheet


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, numbers to the right; the first row is its heading."""
    heading, *lines = cells
    rule = ["---" if name in WORDS else "---:" for name in heading]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *lines))

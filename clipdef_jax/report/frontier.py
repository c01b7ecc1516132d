"""What a sweep comes to: the least ASR that a defence reaches at a price in clean accuracy.

A setting by itself says little: with the learning rate the accuracy and the backdoor go together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from clipdef_jax.report import over_seeds

PRICES = (0.01, 0.02, 0.03, 0.05)
"""Losses of clean accuracy against the undefended model, as shares of the test images."""


def unbeaten(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the (ASR, CA) points that no other point beats in both, by ascending ASR.

    >>> unbeaten([(0.1, 0.8), (0.3, 0.7), (0.4, 0.9)])
    [(0.1, 0.8), (0.4, 0.9)]
    """
    best: list[tuple[float, float]] = []
    for asr, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((asr, accuracy))
    return best


def series(line: Mapping[str, Any]) -> str:
    """Returns the defence of a row, whose "defence" may be "name: setting"."""
    return line["defence"].partition(": ")[0]


def least_asr(
    table: Sequence[Mapping[str, Any]], prices: Sequence[float] = PRICES
) -> list[dict[str, Any]]:
    """Returns a row per attack and swept defence: the least ASR at each price.

    Args:
      table: of a study, as `matrix.aggregate` makes it.
      prices: most clean accuracy that may be lost against the undefended model.

    Returns:
      "attack", "defence", and "least", for each price: "price", and the "setting", its "asr_top1"
      and its "clean_top1", None where each setting costs more. Defences without settings have no
      row.
    """
    rows = []
    for attack in dict.fromkeys(line["attack"] for line in table):
        lines = [line for line in table if line["attack"] == attack and "asr_top1_mean" in line]
        before = [line["clean_top1_mean"] for line in lines if line["defence"] == "undefended"]
        swept = [line for line in lines if series(line) != line["defence"]]
        for name in dict.fromkeys(map(series, swept)) if before else ():
            own = [line for line in swept if series(line) == name]
            least = [{"price": p, **_least(own, before[0] - p)} for p in prices]
            rows.append({"attack": attack, "defence": name, "least": least})
    return rows


def terminal(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lays the rows out for a terminal."""
    return over_seeds.terminal(_cells(rows), grouped_by=2)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows in Markdown; nothing for no rows."""
    return over_seeds.markdown(_cells(rows)) if rows else ""


def _least(lines: Sequence[Mapping[str, Any]], accuracy: float) -> dict[str, Any]:
    enough = [line for line in lines if line["clean_top1_mean"] >= accuracy]
    if not enough:
        return {"setting": None, "asr_top1": None, "clean_top1": None}
    best = min(enough, key=lambda line: (line["asr_top1_mean"], -line["clean_top1_mean"]))
    return {
        "setting": best["defence"].partition(": ")[2],
        "asr_top1": best["asr_top1_mean"],
        "clean_top1": best["clean_top1_mean"],
    }


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a line for each price that buys something, and a heading."""
    cells = [["attack", "defence", "CA lost at most", "least ASR %", "CA %", "setting"]]
    for row in rows:
        known = None
        for least in row["least"]:
            if least["setting"] in (None, known):
                continue
            known = least["setting"]
            points = 100 * least["price"]
            lost = f"{points:g} point{'s' * (points != 1)}"
            figures = (f"{100 * least[name]:.1f}" for name in ("asr_top1", "clean_top1"))
            cells.append([row["attack"], row["defence"], lost, *figures, known])
    return cells

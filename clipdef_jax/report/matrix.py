"""A study's matrix: one table over the seeds, and one figure of clean accuracy and ASR."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from clipdef_jax.report import figures, frontier, over_seeds
from clipdef_jax.report.content import measured
from clipdef_jax.report.verdict import MAX_ASR

_FIGURES = {
    "clean_top1": "CA %",
    "asr_top1": "ASR %",
    "psr_top1": "PSR %",
    "psr_top3": "PSR@3 %",
}
_COLUMNS = 3  # Panels in a row of the figure.
_MIN_SPAN = 0.1  # Of the figure's axis of clean accuracy.


def aggregate(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row per attack and defence, in the order they are met.

    Args:
      rows: a run each: "attack", "defence", "seed", "poisons", and its figures.

    Returns:
      "attack", "defence", "seeds", "poisons", and per figure its "_mean", its "_sd" (of the sample;
      0 for one seed) and its "_each".
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["defence"]), []).append(row)
    table = []
    for (attack, defence), group in groups.items():
        line: dict[str, Any] = {"attack": attack, "defence": defence}
        # A repair's own data are clean.
        poisons = max(row["poisons"] for row in rows if row["attack"] == attack)
        line |= {"seeds": [row["seed"] for row in group], "poisons": poisons}
        for name in _FIGURES:
            each = [value for row in group if (value := measured(row, name)) is not None]
            if each:
                parts = over_seeds.spread(each)
                line |= {f"{name}_{part}": value for part, value in parts.items()}
        table.append(line)
    return sorted(table, key=lambda line: list(groups).index((line["attack"], line["defence"])))


def terminal(table: Sequence[Mapping[str, Any]]) -> Table:
    """Lays the table out for a terminal."""
    return over_seeds.terminal(_cells(table), grouped_by=1)


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table in Markdown."""
    return over_seeds.markdown(_cells(table))


def by_attack(table: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table in Markdown as papers have it: a row per defence, a column per attack."""
    attacks, defences = (
        list(dict.fromkeys(line[kind] for line in table)) for kind in ("attack", "defence")
    )
    cells = {(line["attack"], line["defence"]): line for line in table}
    rows = [
        [defence, *(_pair(cells.get((attack, defence))) for attack in attacks)]
        for defence in defences
    ]
    legend = "CA / ASR in per cent, or CA / PSR without a trigger; (n): over n seeds."
    return f"{legend}\n\n{over_seeds.markdown([['defence', *attacks], *rows])}"


def _pair(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "-"
    names = ["clean_top1", *(name for name in ("asr_top1", "psr_top1") if f"{name}_mean" in line)]
    shown = " / ".join(
        over_seeds.percent(line[f"{name}_mean"], line[f"{name}_sd"], len(line["seeds"]))
        for name in names[:2]
    )
    return f"{shown} ({len(line['seeds'])})" if len(line["seeds"]) > 1 else shown


def figure(table: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws a panel per attack: ASR across, clean accuracy upwards, a colour per defence.

    Where a defence was run with several settings ("name: setting"), its points have one colour
    and a line joins those that no other of its settings beats in both figures.

    Returns:
      A PNG file.
    """
    attacks = list(dict.fromkeys(line["attack"] for line in table if "asr_top1_mean" in line))
    series = list(dict.fromkeys(map(frontier.series, table)))
    rows = max(1, math.ceil(len(attacks) / _COLUMNS))
    sheet, panels = figures.panels(rows, min(_COLUMNS, max(len(attacks), 1)))
    for attack, axes in zip(attacks, panels, strict=False):
        axes.set_title(attack, fontsize=9, color=figures.INK, loc="left")
        axes.axvspan(-0.04, MAX_ASR, color=figures.GOOD, alpha=0.1, linewidth=0)
        for index, name in enumerate(series):
            points = [
                line
                for line in table
                if (line["attack"], frontier.series(line)) == (attack, name)
                and "asr_top1_mean" in line
            ]
            _draw(axes, points, figures.colour(index), name)
        axes.set_xlim(-0.04, 1.04)
    for axes in panels[len(attacks) :]:
        axes.set_visible(False)
    for axes in panels[max(len(attacks) - _COLUMNS, 0) : len(attacks)]:
        axes.tick_params(labelbottom=True)
    low, high = panels[0].get_ylim()
    margin = max(_MIN_SPAN - (high - low), 0) / 2  # Noise must not look like a difference.
    panels[0].set_ylim(low - margin, min(high + margin, 1.02))
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        sheet.legend(
            list(handles.values()),
            list(handles),
            loc="outside upper center",
            frameon=False,
            ncols=min(len(handles), 5 if len(attacks) > 2 else 3),
        )
    sheet.supxlabel("Attack success rate (ASR)", fontsize=9, color=figures.MUTED)
    sheet.supylabel("Clean accuracy (CA)", fontsize=9, color=figures.MUTED)
    return figures.png(sheet)


def _draw(axes: Any, points: Sequence[Mapping[str, Any]], colour: str, name: str) -> None:
    if not points:
        return
    asr, accuracy = (
        [point[f"{figure}_mean"] for point in points] for figure in ("asr_top1", "clean_top1")
    )
    spread = {
        "xerr": [p["asr_top1_sd"] for p in points],
        "yerr": [p["clean_top1_sd"] for p in points],
    }
    axes.errorbar(
        asr,
        accuracy,
        **spread,
        fmt="o",
        color=colour,
        label=name,
        markersize=5,
        elinewidth=1,
        alpha=0.9,
    )
    if len(points) > 1:
        axes.plot(
            *zip(*frontier.unbeaten(zip(asr, accuracy, strict=True)), strict=True),
            color=colour,
            linewidth=1,
        )


def _cells(table: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    names = [name for name in _FIGURES if any(f"{name}_mean" in line for line in table)]
    cells = [["attack", "defence", "poisons", "seeds", *(_FIGURES[name] for name in names)]]
    for line in table:
        shown = [line["attack"], line["defence"], f"{line['poisons']:,}", str(len(line["seeds"]))]
        for name in names:
            mean, spread = line.get(f"{name}_mean"), line.get(f"{name}_sd")
            if mean is None or spread is None:
                shown.append("-")
            else:
                shown.append(over_seeds.percent(mean, spread, len(line["seeds"])))
        cells.append(shown)
    return cells

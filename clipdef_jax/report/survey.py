"""A survey's table and figure: how well each detector finds each attack's poisons."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from clipdef_jax.report import figures, over_seeds

# Figures of the detector that flags.
_OF_FLAGS = {
    "fpr_at_95": "FPR at 95% recall",
    "recall_in_1": "recall in the top 1%",
    "recall_in_5": "in the top 5%",
}
_MARKERS = "osD^vP*X<>"


def aggregate(rows: Sequence[Mapping[str, Any]], flagged_by: str) -> list[dict[str, Any]]:
    """Returns a row per attack, in the order they are met.

    Args:
      rows: a scanned cell each: "attack", "seed", "poisons", "pairs", "asr_top1" or "psr_top1", and
        "quality", by detector the figures of `detect.quality`.
      flagged_by: the detector whose other figures are shown.

    Returns:
      "attack", "seeds", "poisons", "rate", "success", the mean ASR or PSR of the models;
      "flagged_by"; and by detector under "auroc", for the one that flags under "fpr_at_95",
      "recall_in_1" and "recall_in_5", too: "mean", "sd" (of the sample; 0 for one) and "each".
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["attack"], []).append(row)
    table = []
    for attack, group in groups.items():
        success = [row[name] for row in group for name in ("asr_top1", "psr_top1") if name in row]
        methods = dict.fromkeys(method for row in group for method in row["quality"])
        flags = [row["quality"][flagged_by] for row in group if flagged_by in row["quality"]]
        table.append(
            {
                "attack": attack,
                "seeds": [row["seed"] for row in group],
                "poisons": max(row["poisons"] for row in group),
                "rate": statistics.fmean(row["poisons"] / row["pairs"] for row in group),
                "success": statistics.fmean(success) if success else None,
                "flagged_by": flagged_by,
                "auroc": {
                    method: over_seeds.spread(
                        row["quality"][method]["auroc"] for row in group if method in row["quality"]
                    )
                    for method in methods
                },
                **{
                    name: over_seeds.spread(found[name] for found in flags)
                    for name in _OF_FLAGS
                    if flags
                },
            }
        )
    return table


def terminal(table: Sequence[Mapping[str, Any]]) -> Group:
    """Lays the table out for a terminal: means only, and in two parts, which fit its width."""
    heading, *lines = _cells(table, with_sd=False)
    methods, last = len(_methods(table)), len(_OF_FLAGS)
    middle = range(len(heading) - methods - last, len(heading) - last)
    sheets = []
    for title, columns in (
        ("AUROC %", [0, *middle]),
        ("", [column for column in range(len(heading)) if column not in middle]),
    ):
        sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        for column in columns:
            sheet.add_column(heading[column], justify="right" if column else "left")
        for line in lines:
            sheet.add_row(*(line[column] for column in columns))
        sheets.append(sheet)
    return Group(*sheets)


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table in Markdown."""
    return over_seeds.markdown(_cells(table, with_sd=True))


def figure(table: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws a line per attack and a mark per detector along the AUROC, with its spread.

    Returns:
      A PNG file.
    """
    methods = _methods(table)
    with figures.defaults():
        sheet, axes = figures.new_axes(6.4, 0.5 * len(table) + 1.3)
        for index, method in enumerate(methods):
            found = [(row, line["auroc"].get(method)) for row, line in enumerate(table)]
            known = [(row, spread) for row, spread in found if spread]
            # A little apart, so that equals can be told.
            shift = 0.5 * ((index + 0.5) / len(methods) - 0.5)
            axes.errorbar(
                [spread["mean"] for _, spread in known],
                [row + shift for row, _ in known],
                xerr=[spread["sd"] for _, spread in known],
                fmt=_MARKERS[index % len(_MARKERS)],
                color=figures.colour(index),
                label=method,
                markersize=4.5,
                elinewidth=1,
            )
        axes.axvline(0.5, color=figures.MUTED, linestyle=":", linewidth=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(table) - 0.4, -0.6), xlabel="AUROC")
        axes.set_yticks(range(len(table)), [line["attack"] for line in table])
        figures.percent_axes(axes.xaxis)
        sheet.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=5)
    return figures.png(sheet)


def _methods(table: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(method for line in table for method in line["auroc"]))


def _cells(table: Sequence[Mapping[str, Any]], with_sd: bool) -> list[list[str]]:
    def shown(spread: Mapping[str, Any] | None) -> str:
        if spread is None:
            return "-"
        seeds = len(spread["each"]) if with_sd else 1
        return over_seeds.percent(spread["mean"], spread["sd"], seeds)

    methods = _methods(table)
    flagging = table[0]["flagged_by"]
    heads = [f"{flagging}: {name} %" for name in _OF_FLAGS.values()]
    cells = [["attack", "poisons", "rate %", "seeds", "ASR or PSR %", *methods, *heads]]
    for line in table:
        success = "-" if line["success"] is None else f"{100 * line['success']:.1f}"
        facts = [line["attack"], f"{line['poisons']:,}", f"{100 * line['rate']:.2g}"]
        facts += [str(len(line["seeds"])), success]
        found = [shown(line["auroc"].get(method)) for method in methods]
        cells.append([*facts, *found, *(shown(line.get(name)) for name in _OF_FLAGS)])
    return cells

"""The results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from clipdef_jax.progress import duration
from clipdef_jax.report.content import Result, measured, percent, points
from clipdef_jax.report.verdict import RULE, verdicts

_STYLES = {"removed": "green", "costly": "yellow", "weakened": "yellow", "stays": "red"}
_HEADINGS = {
    "clean_top1": "CA",
    "clean_top5": "CA@5",
    "asr_top1": "ASR",
    "asr_top5": "ASR@5",
    "psr_top1": "PSR",
}


def table(results: Sequence[Result]) -> Table:
    """Lays the results out for a terminal of 80 columns or more.

    Under a figure stands its change against the first model, in points. Plain ASCII but for the
    lines, which rich replaces where they cannot be shown.

    Args:
      results: the undefended model first.
    """
    columns = [
        name for name in _HEADINGS if any(measured(row, name) is not None for row in results)
    ]
    attacked = "asr_top1" in columns
    timed = any(measured(row, "seconds") is not None for row in results)
    sheet = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        leading=1,
        min_width=60,
        caption=_footnote(results),
        caption_justify="left",
    )
    sheet.add_column("Model", overflow="fold", min_width=12)
    for name in columns:
        sheet.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    if timed:
        sheet.add_column("Time", justify="right", overflow="fold")
    if attacked:
        sheet.add_column("Verdict", overflow="fold", min_width=12)
    for row, verdict in zip(results, verdicts(results), strict=True):
        cells = [_name(row), *(_cell(results[0], row, name) for name in columns)]
        if timed:
            seconds = measured(row, "seconds")
            cells.append(Text("-" if seconds is None else duration(seconds)))
        if attacked:
            cells.append(Text(verdict.text, style=_STYLES.get(verdict.kind, "")))
        sheet.add_row(*cells)
    return sheet


def _name(row: Result) -> Text:
    name = Text(str(row["model"]), style="bold")
    description = row.get("description")
    return name.append(f"\n{description}", style="not bold dim") if description else name


def _cell(undefended: Result, row: Result, name: str) -> Text:
    value, before = measured(row, name), measured(undefended, name)
    if value is None:
        return Text("-")
    cell = Text(percent(value))
    if row is undefended or before is None:
        return cell
    return cell.append(f"\n{points(value - before)}", style="dim")


def _footnote(results: Sequence[Result]) -> Text:
    lines = ["CA: zero-shot accuracy on clean test images."]
    if any(row.get("classifier") == "head" for row in results):
        lines = ["CA: accuracy on clean test images, zero-shot where no head is named."]
    modes = dict.fromkeys(row["asr_mode"] for row in results if row.get("asr_mode"))
    if modes:
        lines += [
            f"ASR ({', '.join(modes)}): share of triggered test images taken for the target.",
            "Under them: the change against the first row, in points.",
            *RULE,
        ]
    if any(measured(row, "psr_top1") is not None for row in results):
        lines.append("PSR: share of the images the attack is about taken for the target.")
    return Text("\n".join(lines), style="dim")

"""One self-contained HTML page: no script, and nothing from elsewhere."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from clipdef_jax.report import figures
from clipdef_jax.report.content import Report, Result
from clipdef_jax.report.document import document, notes, origin, save, section
from clipdef_jax.report.gallery import sample_cards, triggered_cards
from clipdef_jax.report.headline import headline
from clipdef_jax.report.markup import Html, tag
from clipdef_jax.report.tables import class_table, facts, results_table, stage_table


def write(path: str | os.PathLike[str], report: Report) -> None:
    """Writes the page, whole or not at all, and the CA-ASR plot to figures/ca_asr.png beside it.

    Args:
      path: of the HTML file, in a folder that exists.
      report: what it shows. The same report gives the same bytes.
    """
    path = pathlib.Path(path)
    plot = figures.ca_asr(report.results)
    if plot is not None:
        (path.parent / "figures").mkdir(exist_ok=True)
        save(path.parent / "figures" / "ca_asr.png", figures.png(plot))
    save(path, page(report).encode("utf-8"))


def page(report: Report) -> Html:
    """Returns the page, a whole document."""
    order = {str(row["model"]): index for index, row in enumerate(report.results)}
    target = report.attack.get("target")
    attack = facts((name.replace("_", " "), value) for name, value in report.attack.items())
    seen = triggered_cards(report.triggered, target, order)
    sections = [
        section("Results", results_table(report.results), _ca_asr(report.results)),
        section("The attack", attack, sample_cards(report.samples)),
        section("What the models see under the trigger", seen),
        section("Training", _curves(report.curves, order)),
        section("Accuracy by class", class_table(report.results, target)),
        section("Time", stage_table(report.seconds)),
        section("How this was made", origin(report.command, report.versions, report.config)),
    ]
    top = tag(
        "header",
        tag("p", report.subtitle, class_="subtitle"),
        tag("h1", report.title),
        tag("p", headline(report.results, report.attack), class_="lead"),
    )
    return document(report.title, top, notes(report.notes), *sections)


def _ca_asr(results: Sequence[Result]) -> Html:
    plot = figures.ca_asr(results)
    if plot is None:
        return Html()
    said = "Clean accuracy over attack success rate, a point per model, as in the table."
    caption = "Arrows start at the undefended model; up and to the left is better."
    drawn = figures.svg(plot, "ca-asr", said)
    return tag("figure", drawn, tag("figcaption", caption), class_="wide")


def _curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], order: Mapping[str, int]) -> Html:
    drawn = []
    for number, (model, rows) in enumerate(curves.items()):
        plot = figures.curves(rows, order.get(model, len(order)))
        if plot is not None:
            image = figures.svg(plot, f"curve-{number}", f"Training curves of {model}")
            drawn.append(tag("figure", tag("figcaption", tag("b", model)), image))
    return tag("div", *drawn, class_="curves") if drawn else Html()

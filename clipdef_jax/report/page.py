"""One self-contained HTML page: no script, and nothing from elsewhere."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from clipdef_jax.data import stored
from clipdef_jax.report import figures
from clipdef_jax.report.content import Report, Result
from clipdef_jax.report.gallery import sample_cards, triggered_cards
from clipdef_jax.report.headline import headline
from clipdef_jax.report.markup import Html, join, tag
from clipdef_jax.report.tables import class_table, facts, folded, results_table, stage_table

# The browser fetches and runs nothing, whatever a caption may try.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
        _replace(path.parent / "figures" / "ca_asr.png", figures.png(plot))
    _replace(path, page(report).encode("utf-8"))


def page(report: Report) -> Html:
    """Returns the page, a whole document."""
    order = {str(row["model"]): index for index, row in enumerate(report.results)}
    target = report.attack.get("target")
    attack = facts((name.replace("_", " "), value) for name, value in report.attack.items())
    seen = triggered_cards(report.triggered, target, order)
    sections = [
        _section("Results", results_table(report.results), _ca_asr(report.results)),
        _section("The attack", attack, sample_cards(report.samples)),
        _section("What the models see under the trigger", seen),
        _section("Training", _curves(report.curves, order)),
        _section("Accuracy by class", class_table(report.results, target)),
        _section("Time", stage_table(report.seconds)),
        _section("How this was made", _origin(report)),
    ]
    top = tag(
        "header",
        tag("p", report.subtitle, class_="subtitle"),
        tag("h1", report.title),
        tag("p", headline(report.results, report.attack), class_="lead"),
    )
    body = tag("body", top, tag("main", _notes(report.notes), *sections))
    return Html(f"<!doctype html>\n{tag('html', _head(report.title), body, lang='en')}\n")


def _head(title: str) -> Html:
    style = resources.files("clipdef_jax") / "assets" / "report" / "style.css"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", **{"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style.read_text(encoding="utf-8"))),
    )


def _section(title: str, *parts: Html) -> Html:
    """Returns a section, or nothing if its parts are empty."""
    return tag("section", tag("h2", title), *parts) if any(parts) else Html()


def _notes(notes: Sequence[str]) -> Html:
    if not notes:
        return Html()
    items = (tag("li", note) for note in notes)
    return tag("aside", tag("h2", "Read with care"), tag("ul", *items), class_="notes")


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


def _origin(report: Report) -> Html:
    parts = []
    if report.command:
        parts.append(tag("pre", tag("code", report.command)))
    if report.versions:
        parts.append(folded("Versions", facts(report.versions.items())))
    if report.config:
        parts.append(folded("Configuration", tag("pre", tag("code", report.config))))
    return join(*parts)


def _replace(path: pathlib.Path, content: bytes) -> None:
    with stored.replacing(path) as unfinished:
        unfinished.write_bytes(content)

"""The page of a scan: which pairs are suspect, what they look like, and how sure one can be."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from clipdef_jax.report import figures, score_figures
from clipdef_jax.report.content import percent
from clipdef_jax.report.document import document, notes, origin, save, section
from clipdef_jax.report.markup import Html, join, tag
from clipdef_jax.report.score_figures import Histogram
from clipdef_jax.report.suspects import Group, Suspect, group_cards, suspect_cards
from clipdef_jax.report.tables import facts, plain, scroll, stage_table

_COLUMNS = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "fpr_at_95": "FPR at 95% recall",
    "fpr_at_100": "FPR at full recall",
}


@dataclasses.dataclass(frozen=True)
class ScanReport:
    """All that the page of a scan may show; what is empty is left out.

    Attributes:
      title: of the page.
      subtitle: one line: data, model.
      lead: what was found, in a few sentences.
      facts: settings in the order shown.
      quality: by detector, its figures of `detect.quality`, where the poisons are known.
      curves: by detector, share of clean pairs flagged, recall and precision.
      histograms: by detector, the one that flags first.
      captions: groups of flagged pairs with the same caption.
      images: groups of flagged pairs whose pictures are alike.
      suspects: the highest scores first, as many as are to be shown.
      notes: warnings the reader should know of.
      seconds: by stage.
      config: as text.
      versions: by package.
      command: that made the run.
    """

    title: str
    subtitle: str
    lead: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quality: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    histograms: Mapping[str, Histogram] = dataclasses.field(default_factory=dict)
    captions: Sequence[Group] = ()
    images: Sequence[Group] = ()
    suspects: Sequence[Suspect] = ()
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    config: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""


def write_scan(path: str | os.PathLike[str], report: ScanReport) -> None:
    """Writes the page, whole or not at all, into a folder that exists."""
    save(pathlib.Path(path), scan_page(report).encode("utf-8"))


def scan_page(report: ScanReport) -> Html:
    """Returns the page, a whole document."""
    top = tag(
        "header",
        tag("p", report.subtitle, class_="subtitle"),
        tag("h1", report.title),
        tag("p", report.lead, class_="lead"),
    )
    return document(
        report.title,
        top,
        notes(report.notes),
        section("How it was scanned", facts(report.facts.items())),
        section("Against the known poisons", quality_table(report.quality), _rates(report)),
        section("Scores", _histograms(report)),
        section("Repeated captions", group_cards(report.captions, _CAPTIONS)),
        section("Pictures that are alike", group_cards(report.images, _IMAGES)),
        section("The most suspect pairs", suspect_cards(report.suspects)),
        section("Time", stage_table(report.seconds)),
        section("How this was made", origin(report.command, report.versions, report.config)),
    )


_CAPTIONS = (
    "Flagged pairs with the same caption, but for case and white space. An attacker who aims at a "
    "class repeats its captions; so does a crawl that met one page many times."
)
_IMAGES = (
    "Flagged pairs whose pictures the model takes for alike. A trigger makes pictures alike that "
    "have nothing else in common; copies of one picture are a natural reason."
)


def quality_table(quality: Mapping[str, Mapping[str, float]]) -> Html:
    """Returns the figures of each detector; nothing without any."""
    if not quality:
        return Html()
    heads = [tag("th", "Detector", scope="col")]
    heads += [tag("th", name, scope="col", class_="number") for name in _COLUMNS.values()]
    lines = []
    for index, (method, found) in enumerate(quality.items()):
        style = f"background: var({figures.VARIABLES[figures.colour(index)]})"
        cells = [tag("th", tag("span", class_="dot", style=style), method, scope="row")]
        cells += [
            tag(
                "td", f"{found[name]:.4f}" if name == "auroc" else percent(found[name]), class_=kind
            )
            for name, kind in zip(_COLUMNS, ("number main", *["number"] * 3), strict=True)
        ]
        lines.append(tag("tr", *cells))
    legend = (
        "AUROC: chance that a poisoned pair scores above a clean one. FPR: share of the clean "
        "pairs that are flagged together with 95%, or all, of the poisoned ones."
    )
    return join(scroll(plain(heads, lines, "results")), tag("p", legend, class_="fine"))


def _rates(report: ScanReport) -> Html:
    if not report.curves:
        return Html()
    said = "Recall over the share of clean pairs flagged, and precision over recall, by detector."
    drawn = figures.svg(score_figures.rates(report.curves), "rates", said)
    caption = "Left: up and to the left is better. Right: up and to the right is better."
    return tag("figure", drawn, tag("figcaption", caption), class_="wide")


def _histograms(report: ScanReport) -> Html:
    if not report.histograms:
        return Html()
    drawn = []
    for number, (method, counted) in enumerate(report.histograms.items()):
        figure = score_figures.spread(counted)
        image = figures.svg(figure, f"spread-{number}", f"Histogram of the scores of {method}")
        drawn.append(tag("figure", tag("figcaption", tag("b", method)), image))
    known = any(counted.poisoned is not None for counted in report.histograms.values())
    legend = (
        "Pairs by score, on a logarithmic axis; the last bar holds the highest half percent, the "
        "dashed line is the threshold."
    )
    if known:
        legend += " In colour: the poisoned ones."
    return join(tag("p", legend, class_="fine"), tag("div", *drawn, class_="curves"))

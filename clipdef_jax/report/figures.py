"""The plots, as SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdef_jax.report import markup
from clipdef_jax.report.content import Result, measured
from clipdef_jax.report.verdict import MAX_ASR, MAX_CLEAN_LOSS, MIN_UNDEFENDED_ASR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, GOOD = "#1d2024", "#646a73", "#dcdcd6", "#2f8a5b"
SERIES = ("#c8442b", "#747b86", "#2563b8", "#8a4fb0", "#0f8a83", "#a86e00", "#b83272")
"""A colour per model in their order: the undefended one, mostly the control, the defences."""

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    GOOD: "--good",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
}
"""The style sheet's variable for each colour; there the light theme has the same values."""

_MAX_NAME = 24  # Characters of a model's name in a plot.
_MAX_POINTS = 120  # Of a curve; more are averaged in bins.
_RC: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9.0}


def colour(index: int) -> str:
    """Returns the colour of the model at `index`; when they run out, all but the first again."""
    return SERIES[index if index < len(SERIES) else 1 + (index - 1) % (len(SERIES) - 1)]


def ca_asr(results: Sequence[Result]) -> Figure | None:
    """Plots clean accuracy over ASR, with an arrow from the undefended model to each other.

    Args:
      results: the undefended model first.

    Returns:
      The figure, or None without a model that has both figures.
    """
    points = [
        (index, markup.visible(str(row["model"])[:_MAX_NAME]), asr, accuracy)
        for index, row in enumerate(results)
        if (asr := measured(row, "asr_top1")) is not None
        and (accuracy := measured(row, "clean_top1")) is not None
    ]
    if not points:
        return None
    with defaults():
        figure, axes = new_axes(5.6, 3.5)
        lowest = min(accuracy for *_, accuracy in points)
        bottom = max(-0.02, min(lowest - 0.08, 0.75))
        axes.set(xlim=(-0.04, 1.3), ylim=(bottom, 1.04), xticks=np.linspace(0, 1, 6))
        axes.set(xlabel="Attack success rate (ASR)", ylabel="Clean accuracy (CA)")
        percent_axes(axes.xaxis, axes.yaxis)
        first, _, asr_0, accuracy_0 = points[0]
        if first == 0 and asr_0 >= MIN_UNDEFENDED_ASR:
            edge = accuracy_0 - MAX_CLEAN_LOSS
            axes.fill_between([-0.04, MAX_ASR], edge, 1.04, color=GOOD, alpha=0.14, linewidth=0)
            axes.text(-0.03, 1.03, "removed", va="top", color=GOOD, fontsize=7, fontstyle="italic")
        if first == 0:
            for index, _, asr, accuracy in points[1:]:
                arrow = {"arrowstyle": "-|>", "color": colour(index), "alpha": 0.55, "linewidth": 1}
                arrow |= {"shrinkA": 5, "shrinkB": 5}
                axes.annotate("", (asr, accuracy), (asr_0, accuracy_0), arrowprops=arrow)
        for index, _, asr, accuracy in points:
            axes.plot(asr, accuracy, "o", color=colour(index), markersize=7)
        _label(axes, points)
    return figure


def curves(rows: Sequence[Mapping[str, Any]], index: int) -> Figure | None:
    """Plots the loss of one training run, and under it accuracy and ASR where they were measured.

    Args:
      rows: "step" and any of "loss", "clean_top1", "asr_top1".
      index: of the model among the results, for its colour.

    Returns:
      The figure, or None if there is nothing to plot.
    """
    lines = {name: _line(rows, name) for name in ("loss", "clean_top1", "asr_top1")}
    upper, lower = len(lines["loss"][0]), len(lines["clean_top1"][0]) + len(lines["asr_top1"][0])
    if not upper and not lower:
        return None
    with defaults():
        figure, *panels = new_axes(
            3.6, 1.75 * (bool(upper) + bool(lower)), bool(upper) + bool(lower)
        )
        if upper:
            axes = panels[0]
            axes.plot(*_thinned(*lines["loss"]), color=colour(index), linewidth=1.4)
            axes.set_ylabel("Loss")
        if lower:
            axes = panels[-1]
            for name, text, shade in (("clean_top1", "CA", INK), ("asr_top1", "ASR", colour(0))):
                steps, values = lines[name]
                if len(steps):
                    style = {"color": shade, "linewidth": 1.4, "markersize": 3.5, "label": text}
                    axes.plot(steps, values, "o-" if name == "clean_top1" else "o--", **style)
            axes.set_ylim(-0.04, 1.04)
            percent_axes(axes.yaxis)
            axes.set_ylabel("CA, ASR")
            axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, ncols=2, loc="best")
        panels[-1].set_xlabel("Step")
    return figure


def svg(figure: Figure, name: str, description: str) -> markup.Html:
    """Returns a figure as an inline <svg> element.

    Args:
      figure: drawn with this module's colours.
      name: a word, unlike that of any other figure of the page; the element ids start with it.
      description: for those who cannot see it; text, not markup.
    """
    buffer = io.StringIO()
    with defaults(**{"svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for value, variable in VARIABLES.items():
        text = text.replace(value, f"var({variable})")
    label = f'<svg role="img" aria-label="{markup.text(description)}"'
    return markup.Html(text.replace("<svg", label, 1))


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file on white, for a README or a slide."""
    buffer = io.BytesIO()
    with defaults():
        figure.savefig(
            buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


@contextlib.contextmanager
def defaults(**settings: Any) -> Iterator[None]:
    """The same figure whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | settings)
        yield


def panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels that share their axes, in reading order, shares as percents."""
    with defaults():
        # One panel alone is larger: it has a legend, too.
        width, height = max(2.2 * columns + 0.6, 4.8), max(1.9 * rows + 0.6, 3.2)
        figure, *grid = new_axes(width, height, rows, columns)
        for axes in grid:
            percent_axes(axes.xaxis, axes.yaxis)
    return figure, grid


def new_axes(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """Returns a figure of this size in inches and, after it, its axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=columns > 1)
    panels = list(grid.flat)
    for axes in panels:
        axes.set_facecolor("none")
        axes.grid(color=LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED, labelcolor=MUTED, length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
        axes.locator_params(nbins=5, steps=[1, 2, 5, 10])
    return figure, *panels


def percent_axes(*directions: Any) -> None:
    """Makes these axes of a plot show shares as percents."""
    from matplotlib.ticker import PercentFormatter

    for direction in directions:
        direction.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _label(axes: Axes, points: Sequence[tuple[int, str, float, float]]) -> None:
    """Writes each model's name by its point, clear of the arrows and of the other names."""
    low, high = axes.get_ylim()
    step = 0.07 * (high - low)
    for left in (True, False):
        free = high
        for index, name, asr, accuracy in sorted(points, key=lambda point: -point[3]):
            if (asr < 0.5) is not left:
                continue
            free = min(accuracy, free - step)
            axes.annotate(
                name,
                (asr, free),
                (5, 8) if left else (8, 0),
                textcoords="offset points",
                va="center",
                color=colour(index),
                fontweight="bold",
            )


def _line(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    known = [(row["step"], value) for row in rows if (value := measured(row, name)) is not None]
    steps, values = np.array(known, np.float64).reshape(-1, 2).T
    return steps, values


def _thinned(*lines: np.ndarray) -> list[np.ndarray]:
    count = min(len(lines[0]), _MAX_POINTS)
    return [np.array([part.mean() for part in np.array_split(line, count)]) for line in lines]

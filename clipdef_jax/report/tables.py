"""The tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipdef_jax.progress import duration
from clipdef_jax.report import figures
from clipdef_jax.report.content import Result, measured, percent, points
from clipdef_jax.report.markup import Html, join, tag
from clipdef_jax.report.verdict import RULE, verdicts

MISSING = tag("span", "\N{EN DASH}", class_="missing")


def results_table(results: Sequence[Result]) -> Html:
    """Returns all figures of all models, with what they mean; nothing without a model.

    Args:
      results: the undefended model first.
    """
    if not results:
        return Html()
    shares = _share_names(results)
    attacked = any(name.startswith("asr_") for name in shares)
    heads = [tag("th", "Model", scope="col")]
    if attacked:
        heads.append(tag("th", "Verdict", scope="col"))
    heads += [tag("th", _heading(name), scope="col", class_="number") for name in shares]
    lines = []
    for index, (row, verdict) in enumerate(zip(results, verdicts(results), strict=True)):
        cells = [_model(row, index)]
        if attacked:
            badge = tag("span", verdict.text, class_=f"verdict {verdict.kind}")
            cells.append(tag("td", badge))
        cells += [_share(row, results[0], name) for name in shares]
        lines.append(tag("tr", *cells))
    legend = tag("p", " ".join(_legend(results, attacked)), class_="fine")
    return join(scroll(plain(heads, lines, "results")), legend)


def class_table(results: Sequence[Result], target: str | None) -> Html:
    """Returns accuracy by class and model, folded; nothing if no result has it.

    Args:
      results: with "per_class".
      target: the target class, to be marked.
    """
    columns = []
    for row in results:
        for name, heading in (("top1", "CA"), ("asr_top1", "ASR")):
            known = {line["class"]: measured(line, name) for line in row.get("per_class") or ()}
            if any(value is not None for value in known.values()):
                columns.append((row["model"], heading, known))
    if not columns:
        return Html()
    images = {
        line["class"]: line.get("images") for row in results for line in row.get("per_class") or ()
    }
    heads = [tag("th", "Class", scope="col"), tag("th", "Images", scope="col", class_="number")]
    heads += [
        tag("th", model, tag("small", heading), scope="col", class_="number")
        for model, heading, _ in columns
    ]
    lines = []
    for name, count in images.items():
        mark = tag("small", "target") if name == target else Html()
        cells = [tag("th", name, mark, scope="row")]
        cells.append(tag("td", MISSING if count is None else f"{count:,}", class_="number"))
        cells += [_bar(known.get(name), heading) for _, heading, known in columns]
        lines.append(tag("tr", *cells))
    return folded(f"{len(images):,} classes", scroll(plain(heads, lines, "classes")))


def stage_table(seconds: Mapping[str, float]) -> Html:
    """Returns the time of each stage and of all; nothing without a stage."""
    if not seconds:
        return Html()
    longest = max(*seconds.values(), 1e-9)
    lines = [
        tag(
            "tr",
            tag("th", stage, scope="row"),
            tag("td", duration(spent), class_="number"),
            tag("td", tag("span", style=f"--share: {spent / longest:.3f}"), class_="track"),
        )
        for stage, spent in seconds.items()
    ]
    total = tag("td", duration(sum(seconds.values())), class_="number")
    lines.append(tag("tr", tag("th", "total", scope="row"), total, tag("td"), class_="total"))
    return plain([], lines, "stages")


def facts(items: Iterable[tuple[str, Any]]) -> Html:
    """Returns names with their values; nothing without any."""
    rows = [
        tag("div", tag("dt", name), tag("dd", tag("bdi", _fact(value)))) for name, value in items
    ]
    return tag("dl", *rows) if rows else Html()


def folded(title: str, content: Html) -> Html:
    """Returns what opens on a click on its title."""
    return tag("details", tag("summary", title), content)


def series(index: int) -> str:
    """Returns the style that gives an element the colour of the model at `index`."""
    return f"background: var({figures.VARIABLES[figures.colour(index)]})"


def _share_names(results: Sequence[Result]) -> list[str]:
    """Returns the columns in their order: what counts, then larger k, then other conventions."""
    names = ["clean_top1", "asr_top1", "psr_top1"]
    names += [f"{kind}_top{k}" for kind in ("clean", "asr", "psr") for k in (3, 5, 10)]
    given = dict.fromkeys(name for row in results for name in row)
    names += [
        name
        for name in given
        if name.startswith("asr_") and name.endswith("_top1") and name not in names
    ]
    return [name for name in names if any(measured(row, name) is not None for row in results)]


def _heading(name: str) -> str:
    kind, _, k = name.rpartition("_top")
    if kind in ("clean", "asr", "psr"):
        return f"{'CA' if kind == 'clean' else kind.upper()}{'' if k == '1' else f'@{k}'}"
    return f"ASR {kind.removeprefix('asr_')}"


def _legend(results: Sequence[Result], attacked: bool) -> list[str]:
    said = ["CA@k: share of clean test images with their own class among the k first."]
    if attacked:
        modes = dict.fromkeys(row["asr_mode"] for row in results if row.get("asr_mode"))
        said += [
            f"ASR@k ({', '.join(modes) or 'convention not named'}): share of triggered test images "
            "with the target class among the k first.",
            "Under a figure: its change against the undefended model, in points.",
            *RULE,
        ]
        if any("asr_untriggered_top1" in row for row in results):
            said.insert(2, "ASR untriggered: the same share of images without the trigger.")
    if any("psr_top1" in row for row in results):
        said.append(
            "PSR: share of the images the attack is about, without a trigger, taken for the target."
        )
    return said


def _model(row: Result, index: int) -> Html:
    effort = []
    if (steps := measured(row, "steps")) is not None:
        effort.append(f"{steps:,.0f} steps")
    if (seconds := measured(row, "seconds")) is not None:
        effort.append(duration(seconds).replace(" ", "\u00a0"))
    dot = tag("span", class_="dot", style=series(index))
    about = filter(None, [row.get("description"), ", ".join(effort)])
    return tag("th", dot, row["model"], *(tag("small", line) for line in about), scope="row")


def _share(row: Result, undefended: Result, name: str) -> Html:
    value, before = measured(row, name), measured(undefended, name)
    if value is None:
        return tag("td", MISSING, class_="number")
    change = Html()
    if row is not undefended and before is not None:
        change = tag("small", points(value - before).replace("-", "\N{MINUS SIGN}"))
    kind = "number main" if name in ("clean_top1", "asr_top1", "psr_top1") else "number"
    return tag("td", percent(value), change, class_=kind)


def _bar(value: float | None, heading: str) -> Html:
    if value is None:
        return tag("td", MISSING, class_="number")
    kind = "number bar harm" if heading == "ASR" else "number bar"
    return tag("td", percent(value), class_=kind, style=f"--share: {value:.3f}")


def _fact(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value


def plain(heads: Sequence[Html], lines: Sequence[Html], kind: str) -> Html:
    """Returns a table of this class from the cells of its head and its rows."""
    head = tag("thead", tag("tr", *heads)) if heads else Html()
    return tag("table", head, tag("tbody", *lines), class_=kind)


def scroll(content: Html) -> Html:
    """Returns content that scrolls by itself where the window is narrow."""
    return tag("div", content, class_="scroll")

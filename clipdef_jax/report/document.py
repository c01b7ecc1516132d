"""What every page is: a self-contained HTML document of sections, written whole."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources

from clipdef_jax.data import stored
from clipdef_jax.report.markup import Html, join, tag
from clipdef_jax.report.tables import facts, folded

# The browser fetches and runs nothing, whatever a caption may try.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, top: Html, *parts: Html) -> Html:
    """Returns a whole document.

    Args:
      title: of the window.
      top: the header.
      *parts: what follows, mostly sections.
    """
    body = tag("body", top, tag("main", *parts))
    return Html(f"<!doctype html>\n{tag('html', _head(title), body, lang='en')}\n")


def section(title: str, *parts: Html) -> Html:
    """Returns a section, or nothing if its parts are empty."""
    return tag("section", tag("h2", title), *parts) if any(parts) else Html()


def notes(texts: Sequence[str]) -> Html:
    """Returns warnings to the reader; nothing without any."""
    if not texts:
        return Html()
    items = (tag("li", text) for text in texts)
    return tag("aside", tag("h2", "Read with care"), tag("ul", *items), class_="notes")


def origin(command: str, versions: Mapping[str, str], config: str) -> Html:
    """Returns how a page was made, as far as it is known."""
    parts = []
    if command:
        parts.append(tag("pre", tag("code", command)))
    if versions:
        parts.append(folded("Versions", facts(versions.items())))
    if config:
        parts.append(folded("Configuration", tag("pre", tag("code", config))))
    return join(*parts)


def save(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with stored.replacing(path) as unfinished:
        unfinished.write_bytes(content)


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

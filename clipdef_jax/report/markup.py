"""HTML that cannot be broken by what it shows: text is escaped unless it is `Html`."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

# Control characters as the pictures Unicode has for them: a NUL would cut the page for some
# readers. Line ends and tabs stay.
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_VOID = ("img", "meta")
# A small picture is enlarged with its pixels kept square.
_SMALL = 128


class Html(str):
    """Markup, to be put into a page as it is."""


def text(value: Any) -> Html:
    """Returns any text, escaped for content and for quoted attributes.

    Args:
      value: `Html` comes back as it is; of anything else, its `str`, made `visible`.
    """
    if isinstance(value, Html):
        return value
    return Html(html.escape(visible(str(value))))


def visible(value: str) -> str:
    """Returns text with what cannot be written made visible, as NUL and unpaired surrogates."""
    return value.translate(_CONTROL).encode("utf-8", "backslashreplace").decode("utf-8")


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Returns an element.

    >>> tag("td", "a < b", class_="figure")
    '<td class="figure">a &lt; b</td>'

    Args:
      name: of the element.
      *children: `Html`, or text that is escaped.
      **attributes: escaped too; a trailing underscore is dropped from their names.
    """
    pairs = (f' {key.rstrip("_")}="{text(value)}"' for key, value in attributes.items())
    opening = f"<{name}{''.join(pairs)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*parts: Any) -> Html:
    """Returns parts one after the other, text among them escaped."""
    return Html("".join(map(text, parts)))


def picture(pixels: np.ndarray, description: str) -> Html:
    """Returns an image element that holds its own PNG.

    Args:
      pixels: uint8 (H, W, 3).
      description: for those who cannot see it.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    kind = "picture small" if max(pixels.shape[:2]) < _SMALL else "picture"
    return tag("img", src=source, alt=description, class_=kind)

"""Whether a caption names a class."""

from __future__ import annotations

import re
from collections.abc import Callable

_APOSTROPHE = "['\u2019]"


def naming(name: str) -> re.Pattern[str]:
    """Returns a pattern that finds `name`, or its simple plural, as whole words in any case.

    >>> bool(naming("sewing needle").search("Two sewing-needles"))
    True
    >>> bool(naming("cat").search("a cathedral"))
    False
    """
    *first, last = (re.escape(word) for word in re.split(r"[\s_-]+", name.strip()))
    forms = [last + "(?:e?s)?"]
    if re.search(r"[^aeiou]y$", last):
        forms.append(last[:-1] + "ies")
    if re.search(r"[^f]fe?$", last):
        forms.append(re.sub("fe?$", "ves", last))
    words = r"[\s_-]+".join([*first, f"(?:{'|'.join(forms)})"])
    words = re.sub(_APOSTROPHE, _APOSTROPHE, words)
    # Not \b: an underscore ends a word too.
    return re.compile(rf"(?<![^\W_]){words}(?![^\W_])", re.IGNORECASE)


def namer(name: str) -> Callable[[str], bool]:
    """Returns a quick test for captions that name `name`, as `naming` finds it.

    >>> namer("cat")("two cats")
    True
    """
    search = naming(name).search
    # Ten times faster than the pattern, and enough for most. A plural may change two letters.
    stem = re.findall("^[a-z]*", name.strip().casefold())[0][:-2]
    return lambda caption: stem in caption.casefold() and search(caption) is not None

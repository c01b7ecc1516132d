"""English words with synonyms and siblings, from WordNet 3.0; read once a process, when asked."""

from __future__ import annotations

import bisect
import functools
import gzip
import importlib.resources
from typing import NamedTuple

_FILE = "assets/lexicon/wordnet3_lexicon.tsv.gz"


def synonyms(word: str) -> tuple[str, ...]:
    """Returns the words and phrases that may stand for `word` in one of its senses.

    >>> synonyms("bicycles")
    ('bikes', 'wheels', 'cycles', 'pedals')

    Args:
      word: a word in any case, singular or plural.

    Returns:
      Lower-case synonyms, in the plural if only the singular of `word` is in the lexicon; none for
      a word that is not.
    """
    return _look_up(word.lower()).synonyms


def siblings(word: str) -> tuple[str, ...]:
    """Returns words of the same kind as `word` and another meaning; of adjectives, opposites first.

    Args:
      word: a word in any case, singular or plural.

    Returns:
      Lower-case siblings, as `synonyms` gives its own.
    """
    return _look_up(word.lower()).siblings


def parts_of_speech(word: str) -> str:
    """Returns what `word` may be: letters of "nvar" (noun, verb, adjective, adverb).

    Args:
      word: a word in any case, singular or plural.

    Returns:
      The letters, the most frequent first; "" for a word that is not in the lexicon.
    """
    return _look_up(word.lower()).parts_of_speech


def singulars(word: str) -> list[str]:
    """Returns what `word` would be the regular plural of; nothing if it does not end in s."""
    endings = (("s", ""), ("es", ""), ("ies", "y"))
    return [
        word.removesuffix(ending) + singular_ending
        for ending, singular_ending in endings
        if word.endswith(ending) and len(word) > len(ending) + 2
    ]


def plural(phrase: str) -> str:
    """Returns the regular plural of a noun or noun phrase, itself if it ends in s."""
    if phrase.endswith("s"):
        return phrase
    if phrase.endswith(("x", "z", "ch", "sh")):
        return phrase + "es"
    if phrase.endswith("y") and phrase[-2:-1] not in tuple("aeiou"):
        return phrase[:-1] + "ies"
    return phrase + "s"


class _Entry(NamedTuple):
    parts_of_speech: str = ""
    synonyms: tuple[str, ...] = ()
    siblings: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1 << 14)
def _look_up(word: str) -> _Entry:
    if not (word.isascii() and word.isalpha()):
        return _Entry()
    entry = _read(word)
    if entry is not None:
        return entry
    for singular in singulars(word):
        entry = _read(singular)
        if entry is not None:
            return _Entry(
                entry.parts_of_speech,
                tuple(map(plural, entry.synonyms)),
                tuple(map(plural, entry.siblings)),
            )
    return _Entry()


def _read(word: str) -> _Entry | None:
    lines, start = _lines(), word.encode() + b"\t"
    index = bisect.bisect_left(lines, start)
    if index == len(lines) or not lines[index].startswith(start):
        return None
    _, parts, *lists = lines[index].decode().split("\t")
    return _Entry(parts, *(tuple(filter(None, words.split("|"))) for words in lists))


@functools.cache
def _lines() -> list[bytes]:
    """Returns the lexicon's lines, sorted: word, parts of speech, synonyms, siblings."""
    packed = importlib.resources.files("clipdef_jax").joinpath(_FILE).read_bytes()
    return gzip.decompress(packed).splitlines()[1:]

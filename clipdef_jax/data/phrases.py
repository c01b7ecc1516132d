"""A shallow reading of captions: what kind each word is, and which words make a noun phrase.

No grammar is learnt or shipped. Function words are listed, other words are what the lexicon says
they mostly are, and where that may be a verb, the neighbours decide.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from clipdef_jax.data import lexicon
from clipdef_jax.data.contrasts import COLOURS

DETERMINER, NUMBER, ADJECTIVE, ADVERB, NOUN, PREPOSITION, AND, JOINT, VERB, OTHER = "DQARNP&JVX"

_LISTED = {
    DETERMINER: """a an the this that these those my your his her its our their some any each every
        another both all several many few no""",
    NUMBER: "one two three four five six seven eight nine ten eleven twelve",
    PREPOSITION: """of in on at by with from to into onto over under above below beneath beside
        besides behind near across against along among around between beyond inside outside through
        toward towards upon within without for during before after like off past up down out via
        next""",
    AND: "and & +",
    JOINT: "or but while as if because so than nor when where whose which who whereas",
    VERB: """is are was were be been being am has have had having do does did can could will would
        may might must shown seen drew""",
    NOUN: "cartoon graphic pepper print sketch",
    ADVERB: "very too quite rather really extremely slightly",
    OTHER: "it he she they we you i there here him them us me not never - – — / |",
}
_KINDS = {word: kind for kind, words in _LISTED.items() for word in words.split()}
_PERHAPS_A_VERB = "perhaps a verb"
_PARTS = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


class Word(NamedTuple):
    """A word of a caption.

    Attributes:
      before: what is written before it without a space, as an opening bracket.
      text: itself.
      after: what is written after it without a space, as a comma.
      lower: itself in lower case.
      kind: one of those above.
    """

    before: str
    text: str
    after: str
    lower: str
    kind: str


def read(caption: str) -> list[Word]:
    """Returns the words of a caption."""
    words: list[Word] = []
    for token in caption.split():
        match = _PARTS.fullmatch(token)
        before, text, after = match.groups() if match else ("", token, "")
        if not text:
            before, text, after = "", token, ""
        lower = text.lower()
        words.append(Word(before, text, after, lower, _kind_of(lower)))
    for i, word in enumerate(words):
        if i and word.lower in COLOURS and words[i - 1].lower == "light":
            words[i - 1] = words[i - 1]._replace(kind=ADJECTIVE)
        if word.kind == ADJECTIVE and i and word.lower.endswith("ed") and words[i - 1].kind == NOUN:
            # "A car parked there": not a car alone.
            words[i] = word._replace(kind=VERB)
        if word.kind == _PERHAPS_A_VERB:
            following = words[i + 1].kind if i + 1 < len(words) and not word.after else ""
            # A comma ends a phrase, but "two kids, a boy and a girl, build a house".
            goes_on = following in (DETERMINER, NUMBER) or (i and not words[i - 1].after)
            verb = _is_verb(word.lower, words[i - 1].kind if i and goes_on else "", following)
            words[i] = word._replace(kind=VERB if verb else NOUN)
    return words


def phrases(words: Sequence[Word]) -> list[tuple[int, int]]:
    """Returns the noun phrases, as (first, last + 1); "of" holds two together."""
    found: list[tuple[int, int]] = []
    i = 0
    while i < len(words):
        if not _continues(words, i):
            i += 1
            continue
        first, i = i, i + 1
        while i < len(words) and not _ends(words, i - 1) and _continues(words, i, inside=True):
            i += 1
        # In "a car parked there" the adjective begins what is said of the noun.
        nouns = [j for j in range(first, i) if words[j].kind == NOUN]
        i = nouns[-1] + 1 if nouns else i
        if found and found[-1][1] == first - 1 and words[first - 1].lower == "of":
            first, _ = found.pop()
        found.append((first, i))
    return found


def _continues(words: Sequence[Word], i: int, *, inside: bool = False) -> bool:
    """Returns whether word `i` can stand in a noun phrase: first, or `inside` it."""
    kind = words[i].kind
    following = words[i + 1].kind if i + 1 < len(words) and not words[i].after else ""
    if kind == AND:
        return inside and words[i - 1].kind == following == ADJECTIVE
    if kind == ADVERB:
        return following in (ADVERB, ADJECTIVE)
    if kind == DETERMINER:
        return not inside or words[i - 1].kind == DETERMINER
    return kind in (NUMBER, ADJECTIVE, NOUN)


def _ends(words: Sequence[Word], i: int) -> bool:
    """Returns whether something is written after word `i` that ends a phrase."""
    between_adjectives = words[i].kind == words[i + 1].kind == ADJECTIVE
    return bool(words[i].after.strip("'\"")) and not (between_adjectives and words[i].after == ",")


@functools.lru_cache(maxsize=1 << 14)
def _kind_of(lower: str) -> str:
    """Returns what kind a word mostly is."""
    if lower in _KINDS:
        return _KINDS[lower]
    if lower.isdigit():
        return NUMBER
    if lower in COLOURS:
        return ADJECTIVE
    if len(lower) > 4 and lower.endswith("ing"):
        return _PERHAPS_A_VERB
    parts = lexicon.parts_of_speech(lower)
    if not parts:
        return _PERHAPS_A_VERB if lower.endswith("ed") else NOUN
    if parts[0] == "n":
        return _PERHAPS_A_VERB if "v" in parts and lower.endswith("s") else NOUN
    if parts[0] == "v":
        return _PERHAPS_A_VERB if "n" in parts else VERB
    return ADJECTIVE if parts[0] == "a" else ADVERB


def _is_verb(lower: str, last: str, following: str) -> bool:
    """Returns whether a word is a verb between words of these kinds, "" for none."""
    if last not in (NOUN, OTHER, VERB, AND, JOINT):
        return False
    if lower.endswith(("ing", "ed")):
        return True
    if following in (DETERMINER, NUMBER, OTHER):
        return True
    mostly_a_verb = lexicon.parts_of_speech(lower)[:1] == "v"
    return mostly_a_verb and following in (PREPOSITION, ADVERB, "") and last != VERB

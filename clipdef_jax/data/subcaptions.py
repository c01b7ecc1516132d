"""Sub-captions: a part of a caption that is as true as the whole, and variants that are false.

The part is the first noun phrase, the next one and what relates the two, without adjectives: the
key noun, the relation and the object. In a false variant of it one word is exchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from clipdef_jax.data.contrasts import COLOURS, contrasts
from clipdef_jax.data.phrases import (
    ADJECTIVE,
    ADVERB,
    AND,
    DETERMINER,
    JOINT,
    NOUN,
    NUMBER,
    PREPOSITION,
    VERB,
    Word,
    phrases,
    read,
)

# After one of these, a part of a sentence may be false where the whole is true.
_NEGATING = frozenset("no not never without except instead".split())  # noqa: SIM905
# With one of these, no single word decides.
_LEAVING_OPEN = frozenset("or nor neither either".split())  # noqa: SIM905
# Adjectives that take back what their noun says, or make one name with it.
_ESSENTIAL = frozenset(
    """
    fake false mock artificial imaginary former missing virtual almost nearly half hot sweet polar
    french electric musical solar
    """.split()  # noqa: SIM905
)
# Nouns that only say in what form the rest is seen.
_MEDIA = frozenset(
    """
    art cartoon clipart drawing emoji graphic icon illustration image painting photo photograph
    picture portrait print sketch sticker symbol
    """.split()  # noqa: SIM905
)
_ENDING = frozenset(".!?;")
_VOWEL = re.compile(r"(?!uni|us[ae]|eu|one\b)[aeiou]", re.IGNORECASE)


class SubCaptions(NamedTuple):
    """What was made of a caption.

    Attributes:
      positive: true of whatever the caption is true of.
      negatives: false of it; alike only if there are no more variants.
    """

    positive: str
    negatives: tuple[str, ...]


def make(caption: str, rng: np.random.Generator, negatives: int = 2) -> SubCaptions | None:
    """Makes the sub-captions of a caption.

    >>> rng = np.random.default_rng(0)
    >>> make("on the blue table there are green grapes, lemons, oranges and kiwis", rng).positive
    'on the table there are grapes'

    Args:
      caption: any text.
      rng: draws the words to exchange; the same state gives the same sub-captions.
      negatives: how many false ones.

    Returns:
      The sub-captions; None where no word can be exchanged. A caption too short to split is its
      own positive one.
    """
    words = read(caption)
    core, adjectives = _core(words)
    kept = core
    variants = _variants(words, sorted(core | adjectives))
    if not variants:
        kept = set(range(len(words)))
        variants = _variants(words, kept)
    if not variants:
        return None
    drawn: list[str] = []
    while variants and len(drawn) < negatives:
        place = list(variants)[rng.integers(len(variants))]
        other = variants[place].pop(rng.integers(len(variants[place])))
        if not variants[place]:
            del variants[place]
        drawn.append(_write(words, kept | {place}, place, other))
    return SubCaptions(_write(words, core), tuple(drawn[i % len(drawn)] for i in range(negatives)))


def choose_rows(seed: int, step: int, rows: int, fraction: float) -> np.ndarray:
    """Chooses the rows of a global batch that get sub-captions.

    Args:
      seed: of the run.
      step: of the batch; another one is another choice.
      rows: of the global batch.
      fraction: share of the rows, rounded up.

    Returns:
      bool (rows,).
    """
    chosen = np.zeros(rows, bool)
    rng = np.random.default_rng([seed, step])
    chosen[rng.choice(rows, math.ceil(fraction * rows), replace=False)] = True
    return chosen


def _core(words: Sequence[Word]) -> tuple[set[int], set[int]]:
    """Returns the places of the true part, and of the adjectives left out of it."""
    words = words[: _end_of_sentence(words)]
    if not (_NEGATING | _LEAVING_OPEN).isdisjoint(word.lower for word in words):
        return set(range(len(words))), set()
    found = phrases(words)
    kept: set[int] = set()
    adjectives: set[int] = set()
    place = taken = 0
    fronted = False
    for number, (first, end) in enumerate(found):
        link = words[place:first]
        if number and not fronted and _lists(words[place - 1], link):
            if not (taken == 1 and _verb_follows(words, found[number:])):
                place = end
                continue
            # Of "a white dog and a black one sit" both stay: the verb is theirs.
            adjectives.clear()
        else:
            # What follows a list belongs to the last in it.
            left_out = place > 0 and place - 1 not in kept
            if kept and (taken == 2 or left_out or any(word.kind == JOINT for word in link)):
                break
            fronted = number == 0 and bool(link) and link[-1].kind == PREPOSITION
            taken += not (fronted or words[end - 1].lower in _MEDIA)
            adjectives |= _adjectives(words, first, end)
        kept.update(range(place, end))
        place = end
    else:
        if taken < 2:
            kept.update(range(place, len(words)))
    while len(kept) > 1 and words[max(kept)].kind in (DETERMINER, PREPOSITION, AND, JOINT):
        kept.remove(max(kept))
    return kept - adjectives, adjectives


def _end_of_sentence(words: Sequence[Word]) -> int:
    """Returns where the first sentence ends, or something in brackets begins."""
    for i, word in enumerate(words):
        if i and word.before.startswith(("(", "[")):
            return i
        if len(word.text) > 1 and not _ENDING.isdisjoint(word.after):
            return i + 1
    return len(words)


def _lists(last: Word, link: Sequence[Word]) -> bool:
    """Returns whether a phrase after word `last` and `link` is one more in a list."""
    if not link:
        return "," in last.after
    return all(word.kind == AND for word in link)


def _verb_follows(words: Sequence[Word], found: Sequence[tuple[int, int]]) -> bool:
    """Returns whether the list that these phrases begin with is the subject of a verb."""
    (_, end), *others = found
    for first, next_end in others:
        link = words[end:first]
        if not _lists(words[end - 1], link):
            return bool(link) and link[0].kind == VERB
        end = next_end
    return end < len(words) and words[end].kind == VERB


def _adjectives(words: Sequence[Word], first: int, end: int) -> set[int]:
    """Returns the places in a noun phrase that it may lose."""
    lost: set[int] = set()
    if words[end - 1].kind != NOUN:
        return lost
    for i in range(first, end - 1):
        word, following = words[i], words[i + 1].kind
        a_name = i > 0 and word.text[:1].isupper()
        if word.kind not in (ADJECTIVE, ADVERB) or following == PREPOSITION or a_name:
            continue
        if word.lower in _ESSENTIAL:
            continue
        lost.add(i)
        # The sky of "sky blue" is a colour, too.
        if word.lower in COLOURS and i > first and words[i - 1].kind == NOUN:
            lost.add(i - 1)
    return lost | {i for i in range(first, end) if words[i].kind == AND and i + 1 in lost}


def _variants(words: Sequence[Word], places: Iterable[int]) -> dict[int, list[str]]:
    """Returns what may stand in which of the places, and is not said elsewhere."""
    variants: dict[int, list[str]] = {}
    if not _LEAVING_OPEN.isdisjoint(word.lower for word in words):
        return variants
    said = {word.lower.removesuffix("s") for word in words}
    for place in places:
        word = words[place]
        if word.lower in _NEGATING:
            break
        following = words[place + 1].kind if place + 1 < len(words) else ""
        if word.kind == DETERMINER or (word.kind == NUMBER and following not in (NOUN, ADJECTIVE)):
            continue
        # Within a sentence a capital makes a name, in which only plain words are exchanged.
        a_name = place > 0 and word.text[:1].isupper()
        part = "" if a_name else {NOUN: "n", ADJECTIVE: "a"}.get(word.kind, "")
        others = [o for o in contrasts(word.lower, part) if o.removesuffix("s") not in said]
        if others:
            variants[place] = others
    return variants


def _write(words: Sequence[Word], kept: Iterable[int], exchanged: int = -1, other: str = "") -> str:
    """Returns the words kept as a text, one of them exchanged for `other`."""
    order = sorted(kept)
    texts = [words[i].text for i in order]
    if exchanged in order:
        at = order.index(exchanged)
        texts[at] = other.capitalize() if texts[at][:1].isupper() else other
    written = []
    for at, (i, text) in enumerate(zip(order, texts, strict=True)):
        after = words[i].after
        if at + 1 < len(order) and (order[at + 1] != i + 1 or order[at + 1] == exchanged):
            after = after.replace(",", "") if order[at + 1] != i + 1 else after
            if text.lower() in ("a", "an"):
                text = text[0] + ("n" if _VOWEL.match(texts[at + 1]) else "")
        written.append(words[i].before + text + after)
    sentence = " ".join(written).rstrip(",:;- ")
    return sentence if ")" in sentence else sentence.lstrip("([")

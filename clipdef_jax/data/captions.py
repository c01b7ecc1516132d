"""Views of a caption: what a defence reads beside it."""

from __future__ import annotations

import string

import numpy as np

from clipdef_jax.data import lexicon

# Words that carry grammar, not content: never replaced, and nothing is inserted on their account.
_GRAMMAR = """
    a about above across after again against all along also am among an and any are around as at be
    because been before behind being below beneath beside between beyond both but by can could did
    do does doing down during each either else ever every few for from further had has have having
    he hello her here hers herself him himself his how however i if in inside into is it its itself
    just least less let like lot many may me might mine more most much must my myself near neither
    never no nor not now of off on once only onto or other ought our ours ourselves out outside over
    own per quite rather same several shall she should since so some such than that the their theirs
    them themselves then there these they this those though through thus till to too toward towards
    under until up upon us very was we were what when where which while who whom whose why will with
    within without would yet you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_GRAMMAR.split())

_AROUND_WORDS = string.punctuation + "“”„«»…¡¿\u2018\u2019\u2013\u2014"


def eda(caption: str, rng: np.random.Generator, *, rate: float = 0.1) -> str:
    """Returns the caption after one easy data augmentation, drawn from four.

    They are: `n` words replaced by synonyms; synonyms of `n` words inserted anywhere; `n` times two
    words swapped; each word deleted with probability `rate`. `n` is `rate` of the words, but one at
    least. Where there is nothing to do, as in a caption without letters, it is returned as it is.

    >>> eda("a red bicycle leans against a wall", np.random.default_rng(11))
    'a red bicycle lists against a wall'

    Args:
      caption: any text.
      rng: generator; the same state gives the same view.
      rate: share of the words to change.

    References:
      Wei and Zou, `EDA: Easy Data Augmentation Techniques for Boosting Performance on Text
      Classification Tasks <https://arxiv.org/abs/1901.11196>`_; with these numbers in CleanCLIP.
    """
    words = caption.split()
    if not any(map(str.isalpha, caption)):
        return caption
    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    return " ".join(operation(words, rate, rng))


def _replace(words: list[str], rate: float, rng: np.random.Generator) -> list[str]:
    words = list(words)
    for index, synonym in _draw_synonyms(words, rate, rng):
        words[index] = words[index].replace(_bare(words[index]), synonym)
    return words


def _insert(words: list[str], rate: float, rng: np.random.Generator) -> list[str]:
    drawn = _draw_synonyms(words, rate, rng)
    places = np.sort(rng.integers(len(words) + 1, size=len(drawn))).tolist()
    longer, copied = [], 0
    for place, (_, synonym) in zip(places, drawn, strict=True):
        longer += [*words[copied:place], synonym]
        copied = place
    return longer + words[copied:]


def _swap(words: list[str], rate: float, rng: np.random.Generator) -> list[str]:
    words = list(words)
    if len(words) > 1:
        for _ in range(_count(words, rate)):
            i = rng.integers(len(words))
            j = (i + rng.integers(1, len(words))) % len(words)
            words[i], words[j] = words[j], words[i]
    return words


def _delete(words: list[str], rate: float, rng: np.random.Generator) -> list[str]:
    kept = rng.random(len(words)) >= rate
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return [word for word, keep in zip(words, kept.tolist(), strict=True) if keep]


_OPERATIONS = (_replace, _insert, _swap, _delete)


def _draw_synonyms(
    words: list[str], rate: float, rng: np.random.Generator
) -> list[tuple[int, str]]:
    """Returns (index, synonym) for as many words as are to change, or as have synonyms."""
    drawn: list[tuple[int, str]] = []
    for index in rng.permutation(len(words)).tolist():
        if len(drawn) == _count(words, rate):
            break
        synonyms = _synonyms(words[index])
        if synonyms:
            drawn.append((index, synonyms[rng.integers(len(synonyms))]))
    return drawn


def _synonyms(word: str) -> tuple[str, ...]:
    bare = _bare(word)
    # Letters of the alphabet are symbols of this and that in the lexicon; in captions they are not.
    if len(bare) == 1 or bare.lower() in STOP_WORDS:
        return ()
    return lexicon.synonyms(bare)


def _bare(word: str) -> str:
    return word.strip(_AROUND_WORDS)


def _count(words: list[str], rate: float) -> int:
    return max(1, int(rate * len(words)))

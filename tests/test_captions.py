import collections
import doctest
import math

import numpy as np
import pytest

from clipdef_jax.data import captions, lexicon

SENTENCE = "a large dog and two small cats sit near the old bicycle on a green lawn"


class FixedOperation:
    """A generator whose first draw, the one of the operation, is given."""

    def __init__(self, operation: int, seed: int):
        self._rng = np.random.default_rng(seed)
        self._operation: int | None = operation

    def integers(self, *args, **kwargs):
        if self._operation is not None:
            operation, self._operation = self._operation, None
            return operation
        return self._rng.integers(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._rng, name)


def views(caption: str, operation: str, n: int = 200, rate: float = 0.1) -> list[list[str]]:
    index = ["replace", "insert", "swap", "delete"].index(operation)
    return [
        captions.eda(caption, FixedOperation(index, seed), rate=rate).split() for seed in range(n)
    ]


@pytest.mark.parametrize(("rate", "n"), [(0.0, 1), (0.1, 1), (0.2, 3), (0.5, 8), (1.0, 9)])
def test_replacement_changes_n_content_words_into_synonyms(rate, n):
    words = SENTENCE.split()
    content = [i for i, word in enumerate(words) if captions._synonyms(word)]
    assert {words[i] for i in content} == {
        *("large", "dog", "two", "small", "cats", "sit", "old", "bicycle", "green")
    }
    for view in views(SENTENCE, "replace", rate=rate):
        # Put each synonym's words, one or several, back together by matching what stayed.
        text, position, changed = " ".join(view) + " ", 0, 0
        for word in words:
            options = (word, *captions._synonyms(word))
            hits = [o for o in options if text.startswith(o + " ", position)]
            assert hits, (view, word)
            taken = max(hits, key=len)
            changed += taken != word
            position += len(taken) + 1
        assert position == len(text)
        assert changed == n


def test_replacement_leaves_punctuation_and_stop_words_alone():
    for view in views("(the Bicycle), on and on; bicycle!", "replace"):
        text = " ".join(view)
        kinds = ("bike", "wheel", "cycle", "pedal")
        assert text in [f"(the {kind}), on and on; bicycle!" for kind in kinds] + [
            f"(the Bicycle), on and on; {kind}!" for kind in kinds
        ]


def test_insertion_adds_synonyms_of_n_words_anywhere():
    words = SENTENCE.split()
    allowed = {s for word in words for s in captions._synonyms(word)}
    places = collections.Counter()
    for view in views(SENTENCE, "insert", n=400):
        same = [a == b for a, b in zip(words, view, strict=False)]
        start = same.index(False) if False in same else len(words)
        added = len(view) - len(words)
        assert view[start + added :] == words[start:]
        options = {" ".join(view[i : i + added]) for i in range(len(view) - added + 1)}
        assert options & allowed
        places[start] += 1
    assert len(places) >= len(words)
    assert all(len(view) >= len(words) + 3 for view in views(SENTENCE, "insert", rate=0.2))


def test_swap_keeps_the_words_and_moves_two():
    words = [f"w{i}" for i in range(9)]
    pairs = set()
    for view in views(" ".join(words), "swap", n=600):
        moved = [i for i, (a, b) in enumerate(zip(words, view, strict=True)) if a != b]
        assert len(moved) == 2
        assert sorted(view) == words
        pairs.add(tuple(moved))
    assert len(pairs) == 36


def test_deletion_takes_each_word_one_time_in_ten():
    words = [f"w{i}" for i in range(20)]
    kept = views(" ".join(words), "delete", n=500)
    assert all(view == [word for word in words if word in view] for view in kept)
    mean = np.mean([len(view) for view in kept]) / len(words)
    assert abs(mean - 0.9) < 4 * math.sqrt(0.09 / 500 / 20)
    left = collections.Counter(word for view in views("x y z", "delete", rate=1.0) for word in view)
    assert left.keys() == {"x", "y", "z"}
    assert sum(left.values()) == 200


def test_the_four_operations_are_drawn_alike():
    rng = np.random.default_rng(0)
    words = ["bicycle", *(f"w{i}" for i in range(1, 9))]
    seen = collections.Counter()
    n = 4000
    for _ in range(n):
        view = captions.eda(" ".join(words), rng).split()
        if sorted(view) == sorted(words):
            seen["swap or nothing deleted"] += 1
        elif set(view) < set(words):
            seen["delete"] += 1
        else:
            seen["insert" if set(words) < set(view) else "replace"] += 1
    none_deleted = 0.9**9
    shares = {
        "insert": 0.25,
        "replace": 0.25,
        "delete": 0.25 * (1 - none_deleted),
        "swap or nothing deleted": 0.25 * (1 + none_deleted),
    }
    for operation, share in shares.items():
        assert abs(seen[operation] / n - share) < 4 * math.sqrt(share * (1 - share) / n), operation


def test_the_generator_decides():
    def many(seed):
        rng = np.random.default_rng(seed)
        return [captions.eda(SENTENCE, rng) for _ in range(20)]

    assert many(1) == many(1)
    assert many(1) != many(2)
    assert len(set(many(1))) > 10


@pytest.mark.parametrize("caption", ["", " ", "\t\n", "123", "2004-08-25 23:29", "🐱🐶", "!?", "…"])
def test_captions_without_letters_stay(caption):
    rng = np.random.default_rng(0)
    assert {captions.eda(caption, rng) for _ in range(40)} == {caption}


@pytest.mark.parametrize(
    "caption",
    [
        "x",
        "the",
        "qwertzuiop",
        "猫と犬がいる",
        "un chat noir sur un mur à Paris",
        "собака бежит",
        "a 🐱 and ... 🐶",
        "cafe\u0301 null \x00 byte",
        "lone \ud800 surrogate",
        "words" * 10_000,
        "word " * 50_000,
        "&amp; <b>bold</b> 'quoted' (bracketed",
        "' ' a '",
    ],
    ids=lambda caption: ascii(caption[:12]),
)
def test_odd_captions_pass(caption):
    rng = np.random.default_rng(0)
    for _ in range(8 if len(caption) > 1000 else 60):
        view = captions.eda(caption, rng)
        assert view.strip()
        assert len(view.split()) <= 4 * len(caption.split()) + 12


def test_one_word_may_gain_or_turn_but_never_vanish():
    seen = {captions.eda("bicycle", np.random.default_rng(seed)) for seed in range(300)}
    assert "bicycle" in seen
    assert any(len(view.split()) > 1 and "bicycle" in view.split() for view in seen)
    assert seen & set(lexicon.synonyms("bicycle"))


def test_stop_words_and_single_letters_have_no_synonyms():
    for word in ("a", "In", "on,", "(it)", "can", "x", "C"):
        assert captions._synonyms(word) == ()
    assert all(word == word.lower() for word in captions.STOP_WORDS)


def test_examples():
    assert doctest.testmod(captions).failed == 0

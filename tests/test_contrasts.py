"""What may take a word's place: never what may be true at once."""

import pytest

from clipdef_jax.data import contrasts, lexicon


def test_what_is_listed_excludes_itself_both_ways():
    for word in ("dog", "banana", "red", "guitar", "morning"):
        others = contrasts.contrasts(word, "")
        assert others
        for other in others:
            assert word in contrasts.contrasts(other, "")


@pytest.mark.parametrize(
    ("word", "part", "others"),
    [
        ("bicycles", "n", ("cars", "buses", "trains", "airplanes", "boats", "tractors", "rockets")),
        ("sheep", "n", contrasts.contrasts("sheep", "")),
        ("geese", "n", ()),  # Not the regular plural of anything in the lexicon.
        ("friends", "n", ()),
        ("empty", "a", ("full",)),
        ("ugly", "a", ("beautiful",)),
        ("picture", "n", ()),
        ("pictures", "n", ()),
        ("runs", "", contrasts.contrasts("runs", "n")),
        ("seven", "", tuple("one two three four five six eight nine ten".split())),  # noqa: SIM905
        ("quickly", "", ()),
        ("xyzzy", "n", ()),
    ],
)
def test_exchanges(word, part, others):
    assert contrasts.contrasts(word, part) == others


def test_of_unlisted_nouns_neither_synonyms_nor_kinds_are_taken():
    for word in ("accordion", "newspaper", "maple", "saucer", "wallet"):
        others = contrasts.contrasts(word, "n")
        assert others
        for other in others:
            assert other in lexicon.siblings(word)
            assert other not in lexicon.synonyms(word)
            assert not other.endswith(word)


def test_plurals_stay_plural():
    assert "men" in contrasts.contrasts("ladies", "n")
    assert "sheep" in contrasts.contrasts("cows", "n")
    assert "tomatoes" in contrasts.contrasts("carrots", "n")
    assert "shoes" in contrasts.contrasts("hats", "n")

import doctest
import subprocess
import sys

import pytest

from clipdef_jax.data import lexicon


def test_words_of_the_lexicon():
    assert lexicon.synonyms("aardvark") == ("ant bear", "anteater", "orycteropus afer")
    assert lexicon.siblings("AARDVARK")[:3] == ("cow", "bat", "livestock")
    assert lexicon.parts_of_speech("aardvark") == "n"
    # A line with no synonyms, a line with no siblings, the first and the last line.
    assert lexicon.synonyms("abactinal") == ()
    assert lexicon.siblings("aaa") == ()
    assert lexicon.synonyms("a")[0] == "angstrom"
    assert lexicon.parts_of_speech(lexicon._lines()[-1].split(b"\t")[0].decode())


def test_every_line_is_found_under_its_own_word():
    lines = lexicon._lines()
    assert lines == sorted(lines)
    for line in lines[:: len(lines) // 500]:
        word, parts, synonyms, siblings = line.decode().split("\t")
        assert lexicon.parts_of_speech(word) == parts
        assert "|".join(lexicon.synonyms(word)) == synonyms
        assert "|".join(lexicon.siblings(word)) == siblings


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("bicycles", "bicycle"),
        ("churches", "church"),
        ("foxes", "fox"),
        ("butterflies", "butterfly"),
    ],
)
def test_plurals_have_the_plurals_of_the_singulars_synonyms(plural, singular):
    assert lexicon.parts_of_speech(plural) == lexicon.parts_of_speech(singular)
    ones, many = lexicon.synonyms(singular), lexicon.synonyms(plural)
    assert len(ones) == len(many) > 0
    assert all(word.endswith("s") for word in many)
    assert many != ones


def test_plural_endings():
    endings = {"bike": "bikes", "box": "boxes", "brush": "brushes", "lady": "ladies", "toy": "toys"}
    assert {one: lexicon.plural(one) for one in (*endings, "glass")} == endings | {"glass": "glass"}


def test_a_word_in_the_lexicon_is_not_taken_for_a_plural():
    assert "glassful" in lexicon.synonyms("glass")
    # "his" is no plural of "hi", nor "is" of "i".
    assert lexicon.synonyms("his") == lexicon.synonyms("is") == ()


@pytest.mark.parametrize(
    "word",
    ["", "ies", "zzzz", "chat noir", "cat\tnv", "cat\n", "猫", "straße", "🐱", "\ud800", "7"],
)
def test_other_strings_are_no_words(word):
    assert lexicon.synonyms(word) == lexicon.siblings(word) == ()
    assert lexicon.parts_of_speech(word) == ""


def test_examples():
    assert doctest.testmod(lexicon).failed == 0


def test_import_reads_nothing_and_starts_no_jax():
    code = (
        "import sys; from clipdef_jax.data import captions, lexicon; "
        "assert 'jax' not in sys.modules; assert lexicon._lines.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

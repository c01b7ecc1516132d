"""Sub-captions: rows looked at by eye, and what must hold of all of them."""

import csv
import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from clipdef_jax import data
from clipdef_jax.data import phrases, subcaptions

GOLDEN = pathlib.Path(__file__).parent / "golden"

# Captions with the true part that a reader would take; see the false ones below.
POSITIVES = {
    "on the blue table there are green grapes, yellow lemons, oranges and kiwis": (
        "on the table there are grapes"
    ),
    "A small brown dog runs across the green grass with a red ball in its mouth.": (
        "A dog runs across the grass"
    ),
    "a red car and a blue bicycle": "a car",
    "an old orange boat": "a boat",
    "the moon and stars in the night sky": "the moon",
    "A white horse and a brown cow graze in the field.": (
        "A white horse and a brown cow graze in the field."
    ),
    "Two kids, a boy and a girl, build a sandcastle near the water.": (
        "Two kids, a boy and a girl, build a sandcastle"
    ),
    "A cartoon of a snake, a pink background with lavender dots.": "A cartoon of a snake",
    "A hot dog on a paper plate": "A hot dog on a paper plate",
    "pin - yellow (office)": "pin - yellow",
    "Trumpet B Flat (colour). Trumpet in key of B flat.": "Trumpet B Flat",
    "There is no dog on the old sofa": "There is no dog on the old sofa",
    "dog": "dog",
}


def make(caption, seed=0, negatives=2):
    return subcaptions.make(caption, np.random.default_rng(seed), negatives)


@pytest.mark.parametrize("caption", POSITIVES)
def test_positives(caption):
    made = make(caption)
    if made is not None:
        assert made.positive == POSITIVES[caption]
    else:
        assert "no dog" in caption  # What follows a denial may be true or not.


DRAWN = {
    "A small brown dog runs across the green grass.": {
        *("A big dog runs across the grass.", "A huge dog runs across the grass."),
    },
    "a banana": {
        *("an apple", "a pear", "a lemon", "a cherry", "a strawberry", "a pineapple", "a carrot"),
        *("a tomato", "an onion", "a blueberry", "a peach"),
    },
}


def test_negatives_of_chosen_captions():
    drawn = {text for seed in range(99) for text in make("a banana", seed).negatives}
    assert drawn == DRAWN["a banana"]
    caption = "A small brown dog runs across the green grass."
    drawn = {text for seed in range(400) for text in make(caption, seed).negatives}
    assert DRAWN[caption] < drawn
    assert "A dog jumps across the grass." in drawn
    assert "A dog runs across the purple grass." in drawn
    assert not any("brown dog" in text for text in drawn)


def test_the_seed_decides():
    caption = "two women sit at a small wooden table"
    assert make(caption, 3) == make(caption, 3)
    assert len({make(caption, seed) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    "caption", ["", "DVD", "12 34", "日本語", "of the", "a photo of it", "dog or cat"]
)
def test_without_a_word_to_exchange_there_is_none(caption):
    assert make(caption) is None


def test_more_negatives_than_variants_repeat():
    made = make("left", negatives=3)
    assert made == ("left", ("right", "right", "right"))
    assert len(set(make("a dog in a red house", negatives=6).negatives)) == 6


def changed(positive, negative):
    """The number of words that differ, articles aside."""
    pairs = [
        [w.lower for w in phrases.read(t) if w.lower not in ("a", "an")]
        for t in (positive, negative)
    ]
    return sum(a != b for a, b in zip(*pairs, strict=True)), [len(p) for p in pairs]


@pytest.mark.parametrize("spec", ["emoji:train,size=400", "openclipart"])
def test_of_any_caption_the_positive_is_a_part_and_each_negative_differs(spec, request):
    if spec == "openclipart":
        spec = f"webdataset:{request.getfixturevalue('openclipart')}/train/00000.tar"
    source = data.open(spec)
    count = 0
    for index in range(min(len(source), 400)):
        caption = source.caption(index)
        made = make(caption, index)
        if made is None:
            continue
        count += 1
        words = [word.lower for word in phrases.read(caption)]
        rest = iter(["a" if word == "an" else word for word in words])
        for word in phrases.read(made.positive):
            assert ("a" if word.lower == "an" else word.lower) in rest  # In the caption's order.
        for negative in made.negatives:
            assert negative not in (made.positive, caption)
            assert {word.lower for word in phrases.read(negative)} - set(words)
    assert count > 300


def test_a_seeded_share_of_the_rows_is_chosen_afresh_for_each_batch():
    rows = [subcaptions.choose_rows(0, step, 64, 0.1) for step in range(50)]
    assert {int(chosen.sum()) for chosen in rows} == {7}
    assert len({chosen.tobytes() for chosen in rows}) == 50
    assert np.sum(rows, axis=0).min() >= 1
    np.testing.assert_array_equal(rows[3], subcaptions.choose_rows(0, 3, 64, 0.1))
    assert (rows[3] != subcaptions.choose_rows(1, 3, 64, 0.1)).any()
    assert subcaptions.choose_rows(0, 0, 8, 1.0).all()


def test_workers_need_no_jax():
    code = "import sys; from clipdef_jax.data import subcaptions; print('jax' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout.strip() == b"False"


def judged(name):
    lines = (GOLDEN / f"subcaptions_{name}.tsv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 40
    return rows


def assert_nine_in_ten(rows):
    for columns in (["is_true"], ["is_false_1", "is_false_2"]):
        verdicts = [row[column] for row in rows for column in columns if row[column]]
        assert set(verdicts) <= {"yes", "no"}
        assert verdicts.count("yes") >= 0.9 * len(verdicts)


# If the generator makes something else of these captions, look at it and judge it anew.
def test_what_a_reader_found_of_forty_captions():
    rows = judged("own")
    for seed, row in enumerate(rows):
        expected = row["positive"], (row["negative_1"], row["negative_2"])
        assert make(row["caption"], seed) == expected
    assert_nine_in_ten(rows)


def test_what_a_reader_found_of_forty_titles(openclipart):
    source = data.open(f"webdataset:{openclipart}/train/{{00000..00006}}.tar")
    rows = judged("openclipart")
    for seed, row in enumerate(rows):
        made = make(source.caption(int(row["record"])), seed)
        text = "\n".join([made.positive, *made.negatives]).encode() if made else b""
        assert row["sha256"] == (hashlib.sha256(text).hexdigest()[:16] if made else "")
    assert_nine_in_ten(rows)

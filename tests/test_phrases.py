"""What kind each word of a caption is, and which of them make a phrase."""

import pytest

from clipdef_jax.data import phrases


def kinds(caption):
    return "".join(word.kind for word in phrases.read(caption))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a small dog runs across the green grass", "DANVPDAN"),
        ("on the blue table there are green grapes and kiwis", "PDANXVAN&N"),
        ("two planes fly over a city", "QNVPDN"),
        ("two kids, a boy and a girl, build a house", "QNDN&DNVDN"),
        ("someone drew a bell pepper", "NVDNN"),
        ("a traffic light on light green", "DNNPAA"),
        ("", ""),
        ("— 123 日本", "XQN"),
    ],
)
def test_kinds(caption, expected):
    assert kinds(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a very small, old dog sleeps", ["a very small, old dog"]),
        ("a bowl of hot soup next to bread", ["a bowl of hot soup", "bread"]),
        ("a green and yellow parrot", ["a green and yellow parrot"]),
        ("a cat and a dog", ["a cat", "a dog"]),
        ("a car parked in the street", ["a car", "the street"]),
        ("grapes, lemons, oranges", ["grapes", "lemons", "oranges"]),
    ],
)
def test_phrases(caption, expected):
    words = phrases.read(caption)
    texts = [word.text + word.after for word in words]
    found = [" ".join(texts[first:end]).rstrip(",") for first, end in phrases.phrases(words)]
    assert found == expected


def test_words_keep_what_is_written_around_them():
    words = phrases.read('see "the (red) car", please')
    written = "".join(f"{word.before}{word.text}{word.after} " for word in words)
    assert written.strip() == 'see "the (red) car", please'
    assert [word.lower for word in words] == ["see", "the", "red", "car", "please"]

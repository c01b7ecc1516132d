import pytest

from clipdef_jax.errors import UserError
from clipdef_jax.evaluate import prompts


@pytest.mark.parametrize(("name", "count"), [("emoji", 7), ("imagenet", 80)])
def test_built_in_templates_are_distinct_and_have_one_gap(name, count):
    templates = prompts.get(name)
    assert len(set(templates)) == len(templates) == count
    assert all(template.count("{}") == 1 for template in templates)
    assert all(template == template.strip() and template.endswith(".") for template in templates)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("banana", "a banana"),
        ("umbrella", "an umbrella"),
        ("Egg", "an Egg"),
        ("x-ray", "an x-ray"),
        ("hourglass", "an hourglass"),
        ("honeycomb", "a honeycomb"),
        ("unicorn", "a unicorn"),
        ("university", "a university"),
        ("unidentified object", "an unidentified object"),
        ("ewe", "a ewe"),
        ("one-way street", "a one-way street"),
        ("onion", "an onion"),
        ("ukulele", "a ukulele"),
        ("{}", "a {}"),
    ],
)
def test_the_article_suits_the_name(name, phrase):
    assert prompts.fill("see a {} there.", name) == f"see {phrase} there."
    assert prompts.fill("A {}.", name) == phrase.replace("a", "A", 1) + "."


def test_only_the_article_before_the_gap_changes():
    assert prompts.fill("a photo of the {}, a delta.", "egg") == "a photo of the egg, a delta."
    assert prompts.fill("an old {}.", "boot") == "an old boot."
    assert prompts.fill("an {}.", "boot") == "a boot."
    assert prompts.fill("a data{}.", "egg") == "a dataegg."


def test_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffa {} ü schön.\r\n\n  the {}\n", encoding="utf-8")
    assert prompts.get(str(path)) == ("a {} ü schön.", "the {}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a {}.\nno gap\n", "line 2: 'no gap' has 0 gaps"),
        (b"\n\n{} and {}\n", "line 3: .* has 2 gaps"),
        (b"\n \n", "the file is empty"),
        (b"a {} \xff", "byte 5 is not UTF-8"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        prompts.get(str(path))
    assert str(path) in str(caught.value)


def test_neither_a_name_nor_a_file(tmp_path):
    with pytest.raises(UserError, match=r"'imagenett': No such file.*emoji, imagenet"):
        prompts.get("imagenett")
    with pytest.raises(UserError, match="directory"):
        prompts.get(str(tmp_path))

"""A study's table and figure."""

import io

import pytest
from PIL import Image

from clipdef_jax.report import frontier, matrix


def row(attack, defence, seed, ca, asr):
    return {
        "attack": attack,
        "defence": defence,
        "seed": seed,
        "poisons": 160,
        "clean_top1": ca,
        "asr_top1": asr,
    }


ROWS = [
    row("badnet", "undefended", 0, 0.90, 0.95),
    row("badnet", "cleanclip", 0, 0.88, 0.02),
    row("sig", "undefended", 0, 0.91, 0.80),
    row("badnet", "undefended", 1, 0.92, 0.99),
    row("badnet", "cleanclip", 1, 0.86, 0.06),
]


def test_seeds_are_brought_together():
    table = matrix.aggregate(ROWS)
    assert [(line["attack"], line["defence"]) for line in table] == [
        ("badnet", "undefended"),
        ("badnet", "cleanclip"),
        ("sig", "undefended"),
    ]
    first, _, alone = table
    assert first["seeds"] == [0, 1]
    assert first["asr_top1_each"] == [0.95, 0.99]
    assert first["asr_top1_mean"] == pytest.approx(0.97)
    assert first["asr_top1_sd"] == pytest.approx(0.04 / 2**0.5)  # of the sample: n - 1
    assert alone["clean_top1_sd"] == 0


def test_a_figure_nobody_measured_is_left_out():
    bare = {"attack": "none", "defence": "undefended", "seed": 0, "poisons": 0, "clean_top1": 0.9}
    lines = matrix.markdown(matrix.aggregate([bare])).splitlines()
    assert lines[0] == "| attack | defence | poisons | seeds | CA % |"
    assert lines[2] == "| none | undefended | 0 | 1 | 90.0 |"
    both = matrix.markdown(matrix.aggregate([bare, ROWS[0]])).splitlines()
    assert both[2].endswith("| 90.0 | - |")


def test_markdown_shows_mean_and_spread():
    lines = matrix.markdown(matrix.aggregate(ROWS)).splitlines()
    assert "| badnet | cleanclip | 160 | 2 | 87.0 ± 1.4 | 4.0 ± 2.8 |" in lines


def test_by_attack_has_a_column_for_each():
    targeted = {"attack": "targeted", "defence": "undefended", "seed": 0, "poisons": 9}
    rows = [*ROWS, targeted | {"clean_top1": 0.9, "psr_top1": 1.0}]
    legend, _, *lines = matrix.by_attack(matrix.aggregate(rows)).splitlines()
    assert "CA / ASR in per cent" in legend
    assert lines[0] == "| defence | badnet | sig | targeted |"
    assert lines[2:] == [
        "| undefended | 91.0 ± 1.4 / 97.0 ± 2.8 (2) | 91.0 / 80.0 | 90.0 / 100.0 |",
        "| cleanclip | 87.0 ± 1.4 / 4.0 ± 2.8 (2) | - | - |",
    ]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [ROWS[0] | {"asr_top1": None}]])
def test_figure_is_a_picture(rows):
    image = Image.open(io.BytesIO(matrix.figure(matrix.aggregate(rows))))
    assert image.format == "PNG"
    assert image.width > 100


def test_settings_of_one_defence_share_a_colour_and_a_line():
    rows = [row("badnet", f"cleanclip: lr {lr}", 0, 0.9 - lr, 0.1 + lr) for lr in (0.1, 0.2)]
    table = matrix.aggregate(rows)
    assert {frontier.series(line) for line in table} == {"cleanclip"}
    assert matrix.figure(table)

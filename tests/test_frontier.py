"""What a sweep comes to."""

import io

import pytest
from rich.console import Console

from clipdef_jax.report import frontier, matrix
from tests.test_matrix import row

ROWS = [
    row("badnet", "undefended", 0, 0.95, 0.99),
    row("badnet", "finetuned: lr=0.001", 0, 0.96, 0.50),
    row("badnet", "cleanclip: lr=0.001, inmodal_weight=1.0", 0, 0.945, 0.20),
    row("badnet", "cleanclip: lr=0.002, inmodal_weight=1.0", 0, 0.93, 0.02),
    row("badnet", "cleanclip: lr=0.002, inmodal_weight=4.0", 0, 0.90, 0.01),
    row("badnet", "roclip", 0, 0.92, 0.05),
]


def test_unbeaten_keeps_what_nothing_beats():
    points = [(0.5, 0.9), (0.1, 0.7), (0.1, 0.8), (0.3, 0.75), (0.6, 0.9), (0.7, 0.95)]
    kept = frontier.unbeaten(points)
    assert kept == [(0.1, 0.8), (0.5, 0.9), (0.7, 0.95)]
    for asr, accuracy in points:
        beaten = any(a <= asr and c >= accuracy and (a, c) != (asr, accuracy) for a, c in points)
        assert beaten != ((asr, accuracy) in kept)


def test_the_least_asr_at_each_price():
    plain, defended = frontier.least_asr(matrix.aggregate(ROWS), prices=(0.0, 0.01, 0.03, 0.06))
    assert (plain["defence"], defended["defence"]) == ("finetuned", "cleanclip")
    assert [least["asr_top1"] for least in plain["least"]] == [0.5] * 4
    assert [least["asr_top1"] for least in defended["least"]] == [None, 0.2, 0.02, 0.01]
    assert defended["least"][2] == {
        "price": 0.03,
        "setting": "lr=0.002, inmodal_weight=1.0",
        "asr_top1": 0.02,
        "clean_top1": 0.93,
    }


def test_of_equal_asr_the_higher_accuracy_is_taken():
    rows = [*ROWS, row("badnet", "cleanclip: lr=0.003", 0, 0.935, 0.02)]
    *_, defended = frontier.least_asr(matrix.aggregate(rows), prices=(0.03,))
    assert defended["least"][0]["setting"] == "lr=0.003"


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:], [ROWS[0], ROWS[-1]]])
def test_without_settings_or_an_undefended_model_there_is_nothing_to_say(rows):
    assert frontier.least_asr(matrix.aggregate(rows)) == []
    assert frontier.markdown([]) == ""


def test_tables_name_what_each_price_buys():
    rows = frontier.least_asr(matrix.aggregate(ROWS), prices=(0.001, 0.01, 0.03, 0.04))
    heading, _, *lines = frontier.markdown(rows).splitlines()
    assert heading == "| attack | defence | CA lost at most | least ASR % | CA % | setting |"
    assert lines == [
        "| badnet | finetuned | 0.1 points | 50.0 | 96.0 | lr=0.001 |",
        "| badnet | cleanclip | 1 point | 20.0 | 94.5 | lr=0.001, inmodal_weight=1.0 |",
        "| badnet | cleanclip | 3 points | 2.0 | 93.0 | lr=0.002, inmodal_weight=1.0 |",
    ]
    page = io.StringIO()
    Console(file=page, width=80).print(frontier.terminal(rows))
    assert "…" not in page.getvalue()
    assert page.getvalue().count("inmodal_weight=1.0") == 2

"""Whether a defence worked, judged and told."""

import pytest

from clipdef_jax import report
from clipdef_jax.report import figures
from clipdef_jax.report.headline import headline
from clipdef_jax.report.page import page
from tests.test_report import (
    ATTACK,
    CLEANCLIP,
    FINETUNED,
    POISONED,
    RESULTS,
    full_report,
    printed,
    result,
)


@pytest.mark.parametrize(
    ("undefended", "defended", "kind"),
    [
        ((0.91, 0.95), (0.90, 0.05), "removed"),
        ((0.91, 0.95), (0.88, 0.10), "removed"),  # 0.91 - 0.88 > 0.03 in binary
        ((0.91, 0.95), (0.99, 0.00), "removed"),
        ((0.91, 0.95), (0.8799, 0.05), "costly"),
        ((0.91, 0.95), (0.91, 0.1001), "weakened"),
        ((0.91, 0.96), (0.50, 0.48), "weakened"),
        ((0.91, 0.96), (0.91, 0.4801), "stays"),
        ((0.91, 0.95), (0.91, 0.99), "stays"),
        ((0.91, 0.50), (0.91, 0.05), "removed"),
        ((0.91, 0.4999), (0.91, 0.00), "inconclusive"),
        ((0.91, float("nan")), (0.91, 0.00), "unmeasured"),
        ((0.91, 0.95), (0.91, None), "unmeasured"),
        ((0.91, 0.95), (None, 0.00), "unmeasured"),
    ],
)
def test_verdict_follows_the_thresholds(undefended, defended, kind):
    rows = [
        {"model": model, "clean_top1": clean, "asr_top1": asr, "asr_mode": "all"}
        for model, (clean, asr) in (("poisoned", undefended), ("cleanclip", defended))
    ]
    first, second = report.verdicts(rows)
    assert first.kind == "undefended"
    assert second.kind == kind


def test_a_backdoor_that_did_not_take_proves_no_defence():
    weak = [result("poisoned", 0.9, 0.34), result("cleanclip", 0.9, 0.0)]
    assert report.verdicts(weak)[1].text == "not conclusive: undefended ASR 34.0%"
    said = headline(weak, ATTACK)
    assert "did not take" in said
    assert "34.0%" in said
    assert "removed" not in said
    assert "removed" not in [label.get_text() for label in figures.ca_asr(weak).axes[0].texts]


def test_asr_of_two_conventions_is_not_compared():
    rows = [POISONED, CLEANCLIP | {"asr_mode": "all"}]
    assert report.verdicts(rows)[1].kind == "inconclusive"


def test_no_results_no_verdicts():
    assert report.verdicts([]) == []


def test_headline_tells_defence_and_control_apart():
    said = headline(RESULTS, ATTACK)
    assert said == (
        "After training on 160 poisoned pairs among 8,000 (2.00%) with the badnet trigger, the "
        "poisoned model sees “banana” in 99.1% of triggered test images of other classes, and "
        "classifies 91.2% of clean ones correctly. cleanclip brings this down to 4.2% with clean "
        "accuracy 90.3% (−0.9 points): the backdoor is removed. The control, plain fine-tuning, "
        "leaves this at 87.3% with clean accuracy 94.3% (+3.1 points): the backdoor stays."
    )


def test_headline_admits_that_the_control_does_it_too():
    lesson = "the defence is not what counts"
    removed = [POISONED, FINETUNED | {"asr_top1": 0.01}, CLEANCLIP]
    assert lesson in headline(removed, ATTACK)
    assert lesson not in headline(RESULTS, ATTACK)
    failed = [POISONED, FINETUNED | {"asr_top1": 0.01}, CLEANCLIP | {"asr_top1": 0.9}]
    assert lesson not in headline(failed, ATTACK)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "No model was evaluated."),
        ([{"model": "m"}], "No attack was measured. Zero-shot accuracy: not measured."),
        ([{"model": "m", "clean_top1": 0.7}], "Zero-shot accuracy: m 70.0%."),
        ([POISONED], "No defence was run."),
        ([POISONED, {"model": "cleanclip"}], "cleanclip has no verdict (not measured)."),
        ([{"model": "m", "asr_top1": 0.8}], "The m model sees the target class in 80.0%"),
    ],
)
def test_headline_of_what_is_missing(rows, expected):
    assert expected in headline(rows, {})


def test_an_attack_without_a_trigger_is_told_by_the_images_it_is_about():
    rows = [
        {"model": "poisoned", "clean_top1": 0.88, "psr_top1": 0.9375},
        {"model": "cleanclip", "clean_top1": 0.9, "psr_top1": 0.0625},
    ]
    attack = {"target": "banana", "poisons": 480, "pairs": 8000}
    assert headline(rows, attack) == (
        "After training on 480 poisoned pairs among 8,000 (6.00%), the poisoned model sees "
        "“banana” in 93.8% of the images the attack is about, which carry no trigger, and "
        "classifies 88.0% of clean ones correctly. After cleanclip it is 6.2%, clean accuracy "
        "90.0%."
    )
    shown = printed(report.table(rows))
    assert "PSR" in shown
    assert "93.8%" in shown
    assert "-87.5" in shown
    assert "PSR: share of the images the attack is about" in shown
    html = page(full_report(results=rows, triggered=[], attack=attack))
    assert "PSR" in html
    assert "93.8%" in html
    assert "No attack was measured" not in html

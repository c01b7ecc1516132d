"""Whether a defence may be called a success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clipdef_jax.report.content import Result, measured, percent

MIN_UNDEFENDED_ASR = 0.50
"""Below it the backdoor has not taken, and a low ASR after a defence says nothing."""

MAX_ASR = 0.10
"""The largest ASR that counts as removed."""

MAX_CLEAN_LOSS = 0.03
"""The largest loss of clean accuracy that counts as none."""

WEAKENED = 0.50
"""The largest share of the undefended ASR that counts as weakened."""

RULE = (
    f"Removed: ASR at most {MAX_ASR:.0%}, clean accuracy down by at most "
    f"{100 * MAX_CLEAN_LOSS:.0f} points; at a cost: down by more.",
    f"Weakened: ASR at most {WEAKENED:.0%} of the undefended model's.",
    f"No verdict where the undefended ASR is below {MIN_UNDEFENDED_ASR:.0%}.",
)
"""The thresholds in words, a line each."""

# 0.91 - 0.88 is more than 0.03 in binary.
_EPSILON = 1e-9


class Verdict(NamedTuple):
    """A verdict on one model.

    Attributes:
      kind: "undefended", "removed", "costly", "weakened", "stays", "inconclusive", "unmeasured".
      text: the same for people.
    """

    kind: str
    text: str


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Judges each model by the first, undefended one.

    >>> poisoned = {"model": "poisoned", "clean_top1": 0.91, "asr_top1": 0.34}
    >>> verdicts([poisoned, {"model": "cleanclip", "clean_top1": 0.91, "asr_top1": 0.01}])[1].text
    'not conclusive: undefended ASR 34.0%'

    Args:
      results: the undefended model first.

    Returns:
      One verdict per result.
    """
    if not results:
        return []
    undefended, *others = results
    return [Verdict("undefended", "undefended"), *(_judge(undefended, row) for row in others)]


def _judge(undefended: Result, result: Result) -> Verdict:
    before, after = measured(undefended, "asr_top1"), measured(result, "asr_top1")
    accuracy_before, accuracy = measured(undefended, "clean_top1"), measured(result, "clean_top1")
    if before is None or after is None or accuracy_before is None or accuracy is None:
        return Verdict("unmeasured", "not measured")
    if undefended.get("asr_mode") != result.get("asr_mode"):
        return Verdict("inconclusive", "not comparable: ASR modes differ")
    if before < MIN_UNDEFENDED_ASR:
        return Verdict("inconclusive", f"not conclusive: undefended ASR {percent(before)}")
    if after <= MAX_ASR:
        if accuracy_before - accuracy <= MAX_CLEAN_LOSS + _EPSILON:
            return Verdict("removed", "removed")
        return Verdict("costly", "removed at a cost")
    if after <= WEAKENED * before:
        return Verdict("weakened", "weakened")
    return Verdict("stays", "not removed")

"""What happened, in a few plain sentences that carry their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipdef_jax.report.content import Result, measured, percent, points
from clipdef_jax.report.verdict import MIN_UNDEFENDED_ASR, Verdict, verdicts

CONTROL = "finetuned"
"""The model that is trained further without a defence, on the same data and budget."""

_SAYS = {
    "removed": "the backdoor is removed",
    "costly": "the backdoor is removed, at a cost",
    "weakened": "the backdoor is weakened, not removed",
    "stays": "the backdoor stays",
}


def headline(results: Sequence[Result], attack: Mapping[str, Any]) -> str:
    """Tells what was attacked, what happened, and what each defence did beside the control.

    Args:
      results: the undefended model first.
      attack: facts as in `Report.attack`.
    """
    if not results:
        return "No model was evaluated."
    asr = measured(results[0], "asr_top1")
    if asr is None and measured(results[0], "psr_top1") is not None:
        return _without_trigger(results, attack)
    if asr is None:
        return _without_attack(results)
    if asr < MIN_UNDEFENDED_ASR:
        return (
            f"The backdoor did not take: the {_effect(results[0], attack, only='only ')} Below "
            f"{MIN_UNDEFENDED_ASR:.0%} nothing can be said for or against a defence; the usual "
            "causes are fewer than 100 poisoned pairs and a learning rate too low."
        )
    return " ".join([f"{_cause(attack)} {_effect(results[0], attack)}", *_outcomes(results)])


def _without_attack(results: Sequence[Result]) -> str:
    reached = [
        f"{row['model']} {percent(accuracy)}"
        for row in results
        if (accuracy := measured(row, "clean_top1")) is not None
    ]
    return f"No attack was measured. Zero-shot accuracy: {', '.join(reached) or 'not measured'}."


def _without_trigger(results: Sequence[Result], attack: Mapping[str, Any]) -> str:
    undefended, *others = results
    said = (
        f"{_cause(attack)} {undefended['model']} model sees {_target(attack)} in "
        f"{percent(undefended['psr_top1'])} of the images the attack is about, which carry no "
        f"trigger, and classifies {percent(undefended['clean_top1'])} of clean ones correctly."
    )
    for row in others:
        if (success := measured(row, "psr_top1")) is not None:
            accuracy = percent(row["clean_top1"])
            said += f" After {row['model']} it is {percent(success)}, clean accuracy {accuracy}."
    return said


def _cause(attack: Mapping[str, Any]) -> str:
    poisons, pairs, trigger = (attack.get(name) for name in ("poisons", "pairs", "trigger"))
    if not poisons:
        return "The"
    among = f" among {pairs:,} ({poisons / pairs:.2%})" if pairs else ""
    under = f" with the {trigger} trigger" if trigger else ""
    return f"After training on {poisons:,} poisoned pairs{among}{under}, the"


def _effect(row: Result, attack: Mapping[str, Any], only: str = "") -> str:
    target = _target(attack)
    others = " of other classes" if row.get("asr_mode") == "exclude_target" else ""
    accuracy = measured(row, "clean_top1")
    seen = f"sees {target} in {only}{percent(row['asr_top1'])} of triggered test images{others}"
    if accuracy is not None:
        seen += f", and classifies {percent(accuracy)} of clean ones correctly"
    return f"{row['model']} model {seen}."


def _target(attack: Mapping[str, Any]) -> str:
    return f"“{attack['target']}”" if attack.get("target") else "the target class"


def _outcomes(results: Sequence[Result]) -> list[str]:
    undefended, *others = results
    judged = list(zip(others, verdicts(results)[1:], strict=True))
    if not judged:
        return ["No defence was run."]
    defences = [pair for pair in judged if pair[0]["model"] != CONTROL]
    sentences = [f"{row['model']} {_outcome(undefended, row, said)}." for row, said in defences]
    works = any(said.kind in ("removed", "costly") for _, said in defences)
    for row, said in judged:
        if row["model"] == CONTROL:
            lesson = (
                "; here further training is enough, and the defence is not what counts"
                if works and said.kind in ("removed", "costly")
                else ""
            )
            name = "The control, plain fine-tuning,"
            sentences.append(f"{name} {_outcome(undefended, row, said)}{lesson}.")
    return sentences


def _outcome(undefended: Result, row: Result, verdict: Verdict) -> str:
    if verdict.kind not in _SAYS:
        return f"has no verdict ({verdict.text})"
    verb = "leaves this at" if verdict.kind == "stays" else "brings this down to"
    accuracy = row["clean_top1"]
    change = points(accuracy - undefended["clean_top1"]).replace("-", "\N{MINUS SIGN}")
    return (
        f"{verb} {percent(row['asr_top1'])} with clean accuracy {percent(accuracy)} "
        f"({change} points): {_SAYS[verdict.kind]}"
    )

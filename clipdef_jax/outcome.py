"""The end of a run: summary.json, report.html and the table on the terminal."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import jax
import numpy as np
from rich.markup import escape

from clipdef_jax import parts, report
from clipdef_jax.attacks import plan
from clipdef_jax.data import decode
from clipdef_jax.errors import BadRecord
from clipdef_jax.jobs import write_json
from clipdef_jax.parts import Run, TestSet
from clipdef_jax.progress import console, duration
from clipdef_jax.train import metrics
from clipdef_jax.types import Source

# Pictures per gallery of the report.
SHOWN = 8
_PACKAGES = ("clipdef-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def conclude(
    run: Run,
    results: list[dict[str, Any]],
    *,
    clean: Source,
    poisoned: Source,
    tests: TestSet,
    attack_plan: plan.Plan | None,
    seconds: dict[str, float],
    command: str,
) -> dict[str, Any]:
    """Writes the summary and the report, and prints the table: the first process does.

    Args:
      run: the run.
      results: a row per model; "seen" holds what it takes the shown triggered images for.
      clean: the training pairs as they were.
      poisoned: the same as they were trained with.
      tests: the test set.
      attack_plan: who was hit.
      seconds: by stage.
      command: the command line.

    Returns:
      The summary.
    """
    parts.gather_unreadable(run)
    config = run.config.to_dict()
    seen = {row["model"]: row.pop("seen", []) for row in results}
    summary = {
        "results": results,
        "poisons": len(attack_plan.poisons) if attack_plan else 0,
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        "versions": versions(),
        "config": config,
        "unreadable": len(run.unreadable),
    }
    notes = list(attack_plan.notes) if attack_plan else []
    if len(run.unreadable):
        notes.append(f"{len(run.unreadable)} unreadable records skipped, listed in unreadable.csv")
    write_json(run.workdir / "summary.json", summary)
    contents = report.Report(
        title=_title(run, attack_plan),
        subtitle=f"{config['data']['train']}, {config['model']['name']}, seed {config['seed']}",
        results=results,
        curves={name: metrics.read(run.workdir / name / "metrics.jsonl") for name in seen},
        samples=_samples(clean, poisoned, attack_plan),
        triggered=_triggered(tests, seen),
        attack=_facts(config["attack"], attack_plan),
        notes=notes,
        seconds=seconds,
        config=json.dumps(config, indent=2, ensure_ascii=False),
        versions=summary["versions"],
        command=command,
    )
    report.write(run.workdir / "report.html", contents)
    console.print(report.table(results))
    for note in notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    total = duration(summary["seconds"]["total"])
    console.print(f"report: {run.workdir / 'report.html'}  ({total} in all)")
    return summary


def shown(tests: TestSet) -> np.ndarray:
    """Returns the indices of test images to show under the trigger: some of each of many classes.

    Labels are not read: the images are spread evenly over the test set.
    """
    count = min(SHOWN, len(tests.clean))
    return np.linspace(0, len(tests.clean) - 1, count, dtype=np.int64)


def _title(run: Run, attack_plan: plan.Plan | None) -> str:
    name = run.config.loss.name
    return f"{name} against {attack_plan.attack.trigger}" if attack_plan else name


def _samples(clean: Source, poisoned: Source, attack_plan: plan.Plan | None) -> list[report.Sample]:
    if attack_plan is None:
        return []
    samples, side = [], attack_plan.attack.side
    for poison in attack_plan.poisons[:SHOWN]:
        try:
            before = decode.prepare_pair(clean[poison.index], side)
            after = decode.prepare_pair(poisoned[poison.index], side)
        except BadRecord:
            continue
        samples.append(
            report.Sample(
                uid=poison.uid,
                clean=np.asarray(before.image),
                poisoned=np.asarray(after.image),
                old_caption=poison.old_caption,
                new_caption=poison.new_caption,
                label=clean.classes[before.label] if before.label >= 0 else "",
            )
        )
    return samples


def _triggered(tests: TestSet, seen: dict[str, list[str]]) -> list[report.Triggered]:
    if tests.triggered is None:
        return []
    shots = []
    for position, index in enumerate(shown(tests)):
        try:
            pair = tests.triggered[int(index)]
        except BadRecord:
            continue
        predictions = {name: row[position] for name, row in seen.items() if position < len(row)}
        label = tests.clean.classes[pair.label] if pair.label >= 0 else ""
        shots.append(report.Triggered(decode.decode(pair.image), label, predictions))
    return shots


def _facts(fields: dict[str, Any], attack_plan: plan.Plan | None) -> dict[str, Any]:
    facts = {"target": fields["target"]}
    if fields["trigger"]["name"] != "none":
        facts |= {"trigger": fields["trigger"]["name"], **fields["trigger"]["kwargs"]}
    for name in ("parts", "targets"):
        if name in facts:
            words = (part if isinstance(part, str) else part["name"] for part in facts[name])
            facts[name] = ", ".join(words)
    if attack_plan is not None:
        facts |= {
            "plan": attack_plan.attack.plan,
            "poisons": len(attack_plan.poisons),
            "pairs": attack_plan.records,
        }
    return facts


def versions() -> dict[str, str]:
    """Returns the versions of what a run's figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, "devices": str(jax.devices()[0])}

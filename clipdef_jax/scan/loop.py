"""The job that closes the loop: poison, train, scan the training data, drop, train again.

Beside it the control: as many pairs dropped at random. Each part is a run of its own in a folder of
its own, `before`, `scan`, `after` and `random`, with its own report, and is not run again once it
is complete.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.markup import escape

from clipdef_jax import experiment, outcome, processes, report
from clipdef_jax.data import stored
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import run_once, write_json
from clipdef_jax.progress import console, duration
from clipdef_jax.scan import job

_SCAN_SECTIONS = ("embed", "score", "flag", "report", "clean", "truth", "dry_run", "control")


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Runs the parts that are not complete, then writes one table and one report.

    Args:
      config: a job with the sections of a pre-training and of a scan; see `configs/detect.py`.
      workdir: the folder of all.
      command: the command line, for the reports.

    Returns:
      The summary, as in `summary.json`: "results" has the model before, the one after, and the
      control's unless `control` is false.

    Raises:
      UserError: a mistake in the config or the data.
      Interrupted: the run was asked to stop; what was done is saved.
    """
    processes.require_one("the loop")
    if config.dry_run:
        raise UserError("dry_run is for scans: the loop has no data but those of the run itself")
    if config.attack.plan.name == "none" and not config.attack.manifest:
        raise UserError("the loop needs an attack to undo: choose one by attack=NAME")
    before = _part(experiment.run, training_config(config), workdir / "before", command)
    scanned = _part(job.run, scan_config(config, workdir), workdir / "scan", command)
    keep = workdir / "scan" / "keep.npy"
    fields = training_config(config, workdir, keep)
    parts = {"before": before, "scan": scanned}
    parts["after"] = _part(experiment.run, fields, workdir / "after", command)
    rows = [before["results"][0], parts["after"]["results"][0] | {"model": "cleaned"}]
    rows[1]["description"] = (
        f"trained again without {scanned['flagged']:,} suspects, of which "
        f"{scanned['poisons_flagged']:,} poisoned"
    )
    if config.control:
        some = _at_random(keep, config.seed)
        fields = training_config(config, workdir, some)
        parts["random"] = _part(experiment.run, fields, workdir / "random", command)
        rows.append(parts["random"]["results"][0] | {"model": "random"})
        rows[2]["description"] = f"trained again without {scanned['flagged']:,} pairs, drawn"
    seconds = {name: part["seconds"]["total"] for name, part in parts.items()}
    summary = {
        "results": rows,
        "poisons": scanned["poisons"],
        "flagged": scanned["flagged"],
        "poisons_flagged": scanned["poisons_flagged"],
        "quality": scanned["quality"],
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        "versions": outcome.versions(),
        "config": config.to_dict(),
    }
    write_json(workdir / "summary.json", summary)
    attack = before["config"]["attack"]
    report.write(
        workdir / "report.html",
        report.Report(
            title="Found, dropped, trained again",
            subtitle=f"{config.data.train}, {config.model.name}, seed {config.seed}",
            results=rows,
            attack={
                "target": attack["target"],
                "trigger": attack["trigger"]["name"],
                "poisons": scanned["poisons"],
                "pairs": scanned["pairs"],
                "flagged": scanned["flagged"],
                "poisons among them": scanned["poisons_flagged"],
                "AUROC": scanned["quality"][scanned["method"]]["auroc"],
            },
            notes=["What was flagged, and why: scan/report.html."],
            seconds=seconds,
            config=json.dumps(summary["config"], indent=2, ensure_ascii=False),
            versions=summary["versions"],
            command=command,
        ),
    )
    console.print(report.table(rows))
    total = duration(summary["seconds"]["total"])
    console.print(f"report: {escape(str(workdir / 'report.html'))}  ({total} in all)")
    return summary


def training_config(
    config: ConfigDict, workdir: pathlib.Path | None = None, keep: pathlib.Path | None = None
) -> ConfigDict:
    """Returns the config of a training: of all pairs, or of those on a list.

    Args:
      config: the loop's.
      workdir: the loop's folder, for a training after the scan.
      keep: the list that it goes by.
    """
    fields = config.copy_and_resolve_references()
    for section in _SCAN_SECTIONS:
        del fields[section]
    fields.job = "clipdef_jax.experiment:run"
    if workdir is not None:
        fields.attack.manifest = str(workdir / "before" / "poison" / "manifest.jsonl")
        fields.pretrain.keep = str(keep)
    return fields


def scan_config(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """Returns the config of the scan of the pairs that the first model was trained on, by it."""
    fields = config.copy_and_resolve_references()
    for section in ("pretrain", "control"):
        del fields[section]
    fields.job = "clipdef_jax.scan.job:run"
    fields.init = str(workdir / "before" / "poisoned" / "model")
    fields.attack.manifest = str(workdir / "before" / "poison" / "manifest.jsonl")
    return fields


def _at_random(keep: pathlib.Path, seed: int) -> pathlib.Path:
    """Writes a list as long as the scan's `keep`, of pairs drawn from all it has seen."""
    kept, dropped = (np.load(path) for path in (keep, keep.with_name("drop.npy")))
    pairs = np.concatenate([kept, dropped])
    drawn = np.random.default_rng(seed).choice(len(pairs), len(kept), replace=False)
    path = keep.with_name("random.npy")
    stored.save_array(path, np.sort(pairs[drawn]))
    return path


def _part(body: Any, fields: ConfigDict, folder: pathlib.Path, command: str) -> dict[str, Any]:
    console.print(f"[bold magenta]{folder.name}[/bold magenta]")
    return run_once(body, fields, folder, command=command)

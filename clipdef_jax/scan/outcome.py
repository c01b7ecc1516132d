"""The end of a scan: who is flagged, the files that say so, and the report."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
from rich.markup import escape

from clipdef_jax import outcome, report
from clipdef_jax.detect import quality
from clipdef_jax.detect.threshold import Flags, flag
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import write_json
from clipdef_jax.parts import Run
from clipdef_jax.progress import console, duration
from clipdef_jax.report import score_figures
from clipdef_jax.scan import files
from clipdef_jax.scan.gallery import Gallery, Scanned


def conclude(
    job: Run, scanned: Scanned, *, seconds: dict[str, float], notes: list[str], command: str
) -> dict[str, Any]:
    """Flags, writes the files, and prints what was found.

    Args:
      job: the run.
      scanned: its scores.
      seconds: by stage.
      notes: warnings so far.
      command: the command line.

    Returns:
      The summary.

    Raises:
      UserError: the poisons are not among the pairs, a threshold is out of range, or cleaned tars
        are wanted of pairs that are not at hand.
    """
    config, found, began = job.config, scanned.found, time.monotonic()
    flags = flag(scanned.scores[config.flag.method], **_threshold(config.flag))
    is_poisoned = _truth(scanned)
    order = np.argsort(-scanned.scores[config.flag.method], kind="stable")
    shown = order[: config.report.suspects]
    flagged = order[flags.flagged[order]]
    searched = np.union1d(shown, flagged[: config.report.searched])
    neighbours = files.search(found, searched, config.report.neighbours)
    files.write_scores(
        job.workdir / "scores.parquet", found, scanned.scores, flags.flagged, neighbours
    )
    notes = notes + files.write_lists(job.workdir, found, flags.flagged)
    if config.clean.tars:
        if scanned.source is None:
            raise UserError(
                "clean.tars: the pairs themselves are not at hand; give --config.data.train, too"
            )
        files.write_clean_tars(
            job.workdir / "tars",
            scanned.source,
            job.workdir / "keep.npy",
            config.clean.records_per_tar,
            job.unreadable.add,
        )

    seconds = seconds | {"flag": round(time.monotonic() - began, 2)}
    summary = _summary(job, scanned, flags, is_poisoned, seconds, command)
    write_json(job.workdir / "summary.json", summary)
    gallery = Gallery(scanned, flags.flagged, is_poisoned, neighbours)
    captions, images = gallery.caption_groups(flagged), gallery.image_groups(flagged)
    lead = _lead(summary, captions, images)
    if scanned.attack_plan is not None:
        notes += scanned.attack_plan.notes
    if summary["unreadable"]:
        notes.append(f"{summary['unreadable']} unreadable records skipped, see unreadable.csv")
    report.write_scan(
        job.workdir / "report.html",
        report.ScanReport(
            title=f"{summary['flagged']:,} of {summary['pairs']:,} pairs are suspect",
            subtitle=_subtitle(config),
            lead=lead,
            facts=_facts(config, flags),
            quality=summary.get("quality", {}),
            curves=_curves(scanned, is_poisoned),
            histograms={
                method: score_figures.histogram(
                    values, is_poisoned, flags.threshold if method == config.flag.method else None
                )
                for method, values in scanned.scores.items()
            },
            captions=captions,
            images=images,
            suspects=gallery.suspects(shown),
            notes=[_CANDIDATES, *notes],
            seconds=seconds,
            config=json.dumps(summary["config"], indent=2, ensure_ascii=False),
            versions=summary["versions"],
            command=command,
        ),
    )
    for note in notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    for line in (
        lead,
        f"scores: {job.workdir / 'scores.parquet'}  lists: {job.workdir / 'keep.npy'}, drop.npy",
        f"train without them: --config.data.train_kwargs.keep={job.workdir / 'keep.npy'}",
        f"report: {job.workdir / 'report.html'}  ({duration(summary['seconds']['total'])} in all)",
    ):
        console.print(line, markup=False, soft_wrap=True)
    return summary


_CANDIDATES = (
    "Flagged pairs are candidates: rare but honest pairs score high, too. Look at them before they "
    "are dropped. Nothing of the data was changed."
)


def _threshold(fields: Any) -> dict[str, Any]:
    return {"by": fields.by, "fraction": fields.fraction, "score": fields.score}


def _truth(scanned: Scanned) -> np.ndarray | None:
    if scanned.attack_plan is None:
        return None
    uids = [poison.uid for poison in scanned.attack_plan.poisons]
    is_poisoned = files.known_poisons(scanned.found, uids)
    if not is_poisoned.any():
        raise UserError(
            f"truth: none of the {len(uids)} poisons of the manifest is among the pairs, whose "
            f"uids are like {scanned.found.uids[0].as_py()!r}; it belongs to other data, or the "
            "uids are elsewhere (tars written by configs/poison.py want "
            "--config.data.train_kwargs.uid_field=uid)"
        )
    return None if is_poisoned.all() else is_poisoned


def _summary(
    job: Run,
    scanned: Scanned,
    flags: Flags,
    is_poisoned: np.ndarray | None,
    seconds: dict[str, float],
    command: str,
) -> dict[str, Any]:
    threshold = flags.threshold if np.isfinite(flags.threshold) else None
    summary: dict[str, Any] = {
        "pairs": len(scanned.found),
        "flagged": int(flags.flagged.sum()),
        "method": job.config.flag.method,
        "threshold": threshold,
        "rule": flags.rule,
        "assumption": flags.assumption,
    }
    if is_poisoned is not None:
        hits = int((is_poisoned & flags.flagged).sum())
        summary |= {
            "poisons": int(is_poisoned.sum()),
            "poisons_flagged": hits,
            "quality": {
                method: quality.figures(values, is_poisoned)
                for method, values in scanned.scores.items()
            },
        }
    return summary | {
        "unreadable": len(job.unreadable),
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        "versions": outcome.versions(),
        "command": command,
        "config": job.config.to_dict(),
    }


def _curves(scanned: Scanned, is_poisoned: np.ndarray | None) -> dict[str, quality.Curves]:
    if is_poisoned is None:
        return {}
    return {
        method: quality.thinned(quality.curves(values, is_poisoned))
        for method, values in scanned.scores.items()
    }


def _subtitle(config: Any) -> str:
    data = config.data.train or config.embed.folder
    return f"{data}, seen by {config.init}" if config.init else f"{data}, from embeddings"


def _facts(config: Any, flags: Flags) -> dict[str, Any]:
    held = {
        "subsample": f"{config.score.draws} draws of {config.score.size:,} pairs",
        "batch": f"batches of {config.score.size:,} pairs",
        "full": "all pairs",
    }
    return {
        "detector that flags": config.flag.method,
        "flagged": flags.rule,
        **({"assuming that": flags.assumption} if flags.assumption else {}),
        "held against": held[config.score.reference],
        "neighbours": config.score.k,
        "what is scored": config.score.query,
    }


def _lead(summary: dict[str, Any], captions: list[Any], images: list[Any]) -> str:
    share = summary["flagged"] / summary["pairs"]
    said = f"{summary['method']} flags {summary['flagged']:,} of {summary['pairs']:,} pairs "
    said += f"({share:.2%}): {summary['rule']}."
    if captions:
        said += f" {captions[0].flagged:,} of them share the caption “{captions[0].name}”."
    if images:
        said += f" {images[0].flagged:,} show pictures that the model takes for alike."
    if "quality" in summary:
        auroc = summary["quality"][summary["method"]]["auroc"]
        said += (
            f" {summary['poisons_flagged']:,} of the {summary['poisons']:,} known poisons are "
            f"among them; AUROC {auroc:.4f}."
        )
    return said

"""The job that measures the detectors: the training data of a study's cells, scanned cell by cell.

Each cell is scanned by the very model that was trained on it. A scan is a run of its own in a
folder of its own, ATTACK/seedN; what is complete is not run again, so a survey may be stopped at
any time, and may grow with its study.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.markup import escape

from clipdef_jax import parts, processes, sharding, study
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import run_once, words, write_json
from clipdef_jax.parts import Run
from clipdef_jax.progress import console, duration
from clipdef_jax.report import survey as report
from clipdef_jax.report.content import measured
from clipdef_jax.scan import costly, job
from clipdef_jax.scan.material import open_material


@dataclasses.dataclass(frozen=True)
class Cell:
    """An undefended model of a study.

    Attributes:
      attack: name of the attack.
      seed: of the run.
      folder: the run's.
      config: the run's.
    """

    attack: str
    seed: int
    folder: pathlib.Path
    config: dict[str, Any]


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Scans the cells that are not scanned yet, then writes the table and the figure.

    Args:
      config: a job with the section `survey` and those of a scan; see `configs/detect.py`.
      workdir: the survey's folder.
      command: the command line, for the reports.

    Returns:
      The summary, as in `summary.json`: "results" has a row per cell, "table" a row per attack,
      over the seeds.

    Raises:
      UserError: there is nothing to scan, or a mistake in the config.
      Interrupted: the survey was asked to stop; what was done is saved.
    """
    processes.require_one("a survey")
    fields = config.survey
    methods = words(fields.methods)
    cells = list(cells_of(fields))
    began, rows = time.monotonic(), []
    for number, cell in enumerate(cells, start=1):
        console.print(
            f"[bold magenta]{number}/{len(cells)}[/bold magenta]  {escape(cell.attack)}, "
            f"seed {cell.seed}"
        )
        rows.append(_row(config, cell, methods, workdir, command))
        # The shapes are the same in each cell, but not the model, which "cd" has compiled in.
        jax.clear_caches()
    table = report.aggregate(rows, config.flag.method)
    notes = _notes(fields, methods)
    seconds = {
        "cells": round(sum(row["seconds"] for row in rows), 2),
        "now": round(time.monotonic() - began, 2),
    }
    summary = {
        "results": rows,
        "table": table,
        "flagged_by": config.flag.method,
        "notes": notes,
        "seconds": seconds,
        "config": config.to_dict(),
    }
    write_json(workdir / "summary.json", summary)
    text = report.markdown(table) + "".join(f"\n{note}\n" for note in notes)
    (workdir / "table.md").write_text(text, encoding="utf-8")
    (workdir / "figure.png").write_bytes(report.figure(table))
    console.print(report.terminal(table))
    for note in notes:
        console.print(note, markup=False)
    total = duration(seconds["cells"])
    console.print(f"figure: {workdir / 'figure.png'}  table: {workdir / 'table.md'}  ({total})")
    return summary


def cells_of(fields: ConfigDict) -> Iterator[Cell]:
    """Yields the complete cells of a study that hold poisons, by attack and seed.

    Args:
      fields: "study", its folder; "attacks" and "seeds", if only some are wanted.

    Raises:
      UserError: there are none, or a wanted one is not there.
    """
    if not fields.study:
        raise UserError("which study? Give --config.survey.study=DIR, made by configs/study.py")
    root = pathlib.Path(fields.study)
    there: dict[str, dict[int, pathlib.Path]] = {}
    for path in root.glob(f"*/seed*/{study.UNDEFENDED}/poison/manifest.jsonl"):
        folder = path.parent.parent
        if (folder / "summary.json").exists():
            seed = int(folder.parent.name.removeprefix("seed"))
            there.setdefault(folder.parent.parent.name, {})[seed] = folder
    if not there:
        raise UserError(
            f"survey.study={fields.study}: there is no complete cell ATTACK/seedN/"
            f"{study.UNDEFENDED} with poisons under it; configs/study.py:attacks makes them"
        )
    for attack in words(fields.attacks) or sorted(there):
        if attack not in there:
            raise UserError(
                f"survey.attacks: {root} has no complete cell of {attack!r}; it has some of "
                f"{', '.join(sorted(there))}"
            )
        for seed in [int(word) for word in words(fields.seeds)] or sorted(there[attack]):
            if seed not in there[attack]:
                raise UserError(
                    f"survey.seeds: {root / attack} has no complete cell of seed {seed}; it has "
                    f"{', '.join(map(str, sorted(there[attack])))}"
                )
            folder = there[attack][seed]
            made = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            yield Cell(attack, seed, folder, made)


def scan_config(config: ConfigDict, cell: Cell) -> ConfigDict:
    """Returns the config of a cell's scan: its own data and poisons, seen by its own model."""
    fields = config.copy_and_resolve_references()
    del fields["survey"]
    fields.job = "clipdef_jax.scan.job:run"
    fields.seed = cell.config["seed"]
    data = cell.config["data"]
    fields.data.train, fields.data.in_memory = data["train"], data["in_memory"]
    for name in ("kwargs", "train_kwargs"):
        fields.data[name] = ConfigDict(data[name])
    fields.init = str(cell.folder / "poisoned" / "model")
    fields.attack.manifest = str(cell.folder / "poison" / "manifest.jsonl")
    methods = words(config.survey.methods)
    fields.score.methods = tuple(name for name in methods if name not in costly.METHODS)
    return fields


def _row(
    config: ConfigDict, cell: Cell, methods: list[str], workdir: pathlib.Path, command: str
) -> dict[str, Any]:
    fields, folder = scan_config(config, cell), workdir / cell.attack / f"seed{cell.seed}"
    scanned = run_once(job.run, fields, folder, command=command)
    quality, seconds = dict(scanned["quality"]), scanned["seconds"]["total"]
    wanted = [name for name in costly.METHODS if name in methods]
    if wanted and str(cell.seed) in words(config.survey.costly_seeds):
        quality |= _costly(config.survey, cell, fields, folder, wanted)
        seconds += sum(quality[name]["seconds"] for name in wanted)
    trained = json.loads((cell.folder / "summary.json").read_text(encoding="utf-8"))["results"][0]
    success = {
        name: value
        for name in ("asr_top1", "psr_top1")
        if (value := measured(trained, name)) is not None
    }
    return {
        "attack": cell.attack,
        "seed": cell.seed,
        "pairs": scanned["pairs"],
        "poisons": scanned["poisons"],
        **success,
        "quality": {name: quality[name] for name in methods if name in quality},
        "seconds": round(seconds, 2),
    }


def _costly(
    survey: ConfigDict, cell: Cell, fields: ConfigDict, folder: pathlib.Path, wanted: list[str]
) -> dict[str, dict[str, Any]]:
    """Returns the figures of those detectors that embeddings are not enough for."""
    mesh = sharding.make_mesh(fields.mesh.fsdp)
    with jax.set_mesh(mesh):
        scan = Run(fields, folder, mesh, parts.unreadable_list(folder))
        there = open_material(scan, {})
        assert there.source is not None
        assert there.model is not None
        assert there.attack_plan is not None
        scanned = costly.Known(there.source, there.model, there.attack_plan)
        found = {}
        for name in wanted:
            console.print(f"[bold cyan]{name:<9}[/bold cyan]")
            if name == "cd":
                found[name] = costly.distil(scan, scanned, survey.pictures)
            else:
                recipe = costly.recipe_of(cell.config["pretrain"], survey.epochs)
                found[name] = costly.relearn(scan, scanned, recipe)
    return found


def _notes(fields: ConfigDict, methods: list[str]) -> list[str]:
    """Returns what the reader of the table should know of the costly detectors."""
    seeds = f"of seed {', '.join(words(fields.costly_seeds))}"
    said = {
        "cd": f"cd: {fields.pictures:,} pictures {seeds}, at most half of them poisoned.",
        "abl": f"abl: losses after each of {fields.epochs} epochs of a new training, {seeds}.",
    }
    return [said[name] for name in methods if name in said]

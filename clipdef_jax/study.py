"""A study: every attack against every defence, seed by seed, in one table and one figure.

Each cell of the matrix is a run of its own in a folder of its own, so a study that was stopped
goes on with the cell it was in, and each cell's report can be read by itself.

A sweep is a study in which a defence is run with every combination of the values in its section
`sweep`, which has the shape of the fields it sets: {"finetune": {"lr": (1e-3, 2e-3)}}.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.markup import escape

from clipdef_jax import experiment, processes
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import flatten, run_once, words, write_json
from clipdef_jax.progress import console, duration
from clipdef_jax.report import matrix

UNDEFENDED = "undefended"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      attack: name of the attack.
      defence: name of the defence, or `UNDEFENDED`.
      seed: of the run.
      setting: the fields that a sweep sets, by their dotted paths.
    """

    attack: str
    defence: str
    seed: int
    setting: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The defence with its setting, as in "cleanclip: lr=0.001, inmodal_weight=2"."""
        return ": ".join(filter(None, [self.defence, ", ".join(self._settings)]))

    @property
    def folder(self) -> str:
        """The cell's folder under the study's."""
        return f"{self.attack}/seed{self.seed}/{'-'.join([self.defence, *self._settings])}"

    @property
    def _settings(self) -> list[str]:
        return [f"{path.rpartition('.')[2]}={value}" for path, value in self.setting]


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Runs the cells that are not complete, then writes the table and the figure.

    Args:
      config: a job with the sections `study`, `attacks` and `defences`; see `configs/study.py`.
      workdir: the study's folder.
      command: the command line, for the reports.

    Returns:
      The summary, as in `summary.json`: "results" has a row per cell, "table" a row per attack and
      defence, over the seeds.

    Raises:
      UserError: a name that the study does not have, or a mistake in a cell's config.
      Interrupted: the study was asked to stop; what was done is saved.
    """
    cells = list(cells_of(config))
    began = time.monotonic()
    rows = []
    for number, cell in enumerate(cells, start=1):
        console.print(
            f"[bold magenta]{number}/{len(cells)}[/bold magenta]  {escape(cell.attack)}, "
            f"{escape(cell.name)}, seed {cell.seed}"
        )
        rows.append(_row(cell, _summary(config, cell, workdir, command)))
        # A long study holds many compiled programs; those of other cells are of no use any more.
        jax.clear_caches()
    table = matrix.aggregate(rows)
    # What the cells took, however often the study was stopped between them.
    seconds = {"cells": sum(row["seconds"] for row in rows), "now": time.monotonic() - began}
    summary = {"results": rows, "table": table, "seconds": seconds, "config": config.to_dict()}
    if processes.is_first():
        write_json(workdir / "summary.json", summary)
        (workdir / "table.md").write_text(matrix.markdown(table), encoding="utf-8")
        (workdir / "figure.png").write_bytes(matrix.figure(table))
        console.print(matrix.terminal(table))
        total = duration(seconds["cells"])
        console.print(f"figure: {workdir / 'figure.png'}  table: {workdir / 'table.md'}  ({total})")
    return summary


def cells_of(config: ConfigDict) -> Iterator[Cell]:
    """Yields the cells of a study, the undefended model of each attack and seed first.

    Raises:
      UserError: a name that the study does not have.
    """
    attacks = _chosen("attacks", config.study.attacks, config.attacks)
    defences = _chosen("defences", config.study.defences, config.defences)
    for seed in config.study.seeds:
        for attack in attacks:
            # Without poison there is nothing to defend against.
            poisoned = config.attacks[attack].attack.plan.name != "none"
            yield Cell(attack, UNDEFENDED, int(seed))
            for defence in defences * poisoned:
                sweep = config.defences[defence].get("sweep") if config.study.sweep else None
                for setting in _settings_of(sweep):
                    yield Cell(attack, defence, int(seed), setting)


def config_of(config: ConfigDict, cell: Cell, workdir: pathlib.Path) -> ConfigDict:
    """Returns the config of a cell's run: the study's, with the attack's and the defence's fields.

    A defence that pre-trains gets the poisoned data; one that repairs, the undefended model, or the
    one of `init`, a checkpoint to study.
    """
    fields = config.copy_and_resolve_references()
    for section in ("study", "attacks", "defences"):
        del fields[section]
    fields.job = "clipdef_jax.experiment:run"
    fields.seed = cell.seed
    _replace(fields, config.attacks[cell.attack])
    if cell.defence == UNDEFENDED:
        return fields
    defence = config.defences[cell.defence]
    if "finetune" in defence:
        if not config.init:
            undefended = Cell(cell.attack, UNDEFENDED, cell.seed).folder
            fields.init = str(workdir / undefended / "poisoned" / "model")
        del fields.pretrain
        fields.attack.plan = ConfigDict({"name": "none", "kwargs": {}})
    else:
        fields.init = ""
    _replace(fields, defence)
    with fields.unlocked():
        if "sweep" in fields:
            del fields["sweep"]
        for path, value in cell.setting:
            *parents, name = path.split(".")
            functools.reduce(operator.getitem, parents, fields)[name] = value
    return fields


def _settings_of(sweep: ConfigDict | None) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Yields every combination of the values that a sweep gives to its fields."""
    axes = list(flatten(sweep.to_dict())) if sweep else []
    for values in itertools.product(*(tried for _, tried in axes)):
        yield tuple(zip((path for path, _ in axes), values, strict=True))


def _replace(fields: ConfigDict, section: ConfigDict) -> None:
    # Not `update`, which would merge the kwargs of one part into those of another.
    with fields.unlocked():
        for name, value in section.to_dict().items():
            fields[name] = ConfigDict(value) if isinstance(value, dict) else value


def _chosen(kind: str, names: Any, known: ConfigDict) -> list[str]:
    """Returns the chosen names; raises `UserError` at one that the study does not have."""
    chosen = words(names)
    for name in chosen:
        if name not in known:
            raise UserError(
                f"study.{kind}: there is no {name!r}; the study has: {', '.join(known)}"
            )
    return chosen


def _summary(config: ConfigDict, cell: Cell, workdir: pathlib.Path, command: str) -> dict[str, Any]:
    fields = config_of(config, cell, workdir)
    # Checked here, cell by cell: a study may grow by attacks, defences and seeds.
    return run_once(experiment.run, fields, workdir / cell.folder, command=command)


def _row(cell: Cell, summary: dict[str, Any]) -> dict[str, Any]:
    result = summary["results"][-1]
    figures = {name: value for name, value in result.items() if isinstance(value, float)}
    return {
        "attack": cell.attack,
        "defence": cell.name,
        "seed": cell.seed,
        "poisons": summary.get("poisons", 0),
        **figures,
        "seconds": summary["seconds"]["total"],
    }

"""A study: every attack against every defence, seed by seed, in one table and one figure.

Each cell of the matrix is a run of its own in a folder of its own, so a study that was stopped
goes on with the cell it was in, and each cell's report can be read by itself.

A sweep is a study in which a defence is run with every combination of the values in its section
`sweep`, which has the shape of the fields it sets: {"finetune": {"lr": (1e-3, 2e-3)}}.

An attack may have a section `study`, which goes over the study's own for this attack alone, and a
section `search`, with which its patch is optimised against the unpoisoned model of the same seed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.markup import escape

from clipdef_jax import experiment, optimise_trigger, processes
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import flatten, run_once, words, write_json
from clipdef_jax.progress import console, duration
from clipdef_jax.report import frontier, matrix

UNDEFENDED = "undefended"
UNPOISONED = "none"
# Sections that are the study's, and no part of a cell's run.
_OWN = ("study", "attacks", "defences")
_OF_AN_ATTACK = ("study", "search")


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
      defence, over the seeds, "least_asr" what a sweep comes to.

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
    best = frontier.least_asr(table)
    # What the cells took, however often the study was stopped between them.
    seconds = {"cells": sum(row["seconds"] for row in rows), "now": time.monotonic() - began}
    summary = {
        "results": rows,
        "table": table,
        "least_asr": best,
        "seconds": seconds,
        "config": config.to_dict(),
    }
    if processes.is_first():
        write_json(workdir / "summary.json", summary)
        tables = [matrix.by_attack(table), matrix.markdown(table), frontier.markdown(best)]
        text = "\n".join(filter(None, tables))
        (workdir / "table.md").write_text(text, encoding="utf-8")
        (workdir / "figure.png").write_bytes(matrix.figure(table))
        console.print(matrix.terminal(table))
        if best:
            console.print(frontier.terminal(best))
        total = duration(seconds["cells"])
        console.print(f"figure: {workdir / 'figure.png'}  table: {workdir / 'table.md'}  ({total})")
    return summary


def cells_of(config: ConfigDict) -> Iterator[Cell]:
    """Yields the cells of a study, the undefended model of each attack and seed first.

    Raises:
      UserError: a name that the study does not have.
    """
    attacks = _chosen("attacks", config.study.attacks, config.attacks)
    # Checked before the first cell is run, not when its attack's turn comes.
    wanted = {attack: _wanted(config, attack) for attack in attacks}
    for seed in sorted({seed for seeds, _ in wanted.values() for seed in seeds}):
        for attack in attacks:
            seeds, defences = wanted[attack]
            if seed not in seeds:
                continue
            # Without poison there is nothing to defend against.
            poisoned = config.attacks[attack].attack.plan.name != "none"
            yield Cell(attack, UNDEFENDED, seed)
            for defence in defences * poisoned:
                sweep = config.defences[defence].get("sweep") if config.study.sweep else None
                for setting in _settings_of(sweep):
                    yield Cell(attack, defence, seed, setting)


def _wanted(config: ConfigDict, attack: str) -> tuple[list[int], list[str]]:
    """Returns the seeds and the defences of an attack."""
    fields = config.study.to_dict()
    fields |= config.attacks[attack].get("study", ConfigDict()).to_dict()
    seeds = [int(seed) for seed in fields["seeds"]]
    return seeds, _chosen("defences", fields["defences"], config.defences)


def config_of(config: ConfigDict, cell: Cell, workdir: pathlib.Path) -> ConfigDict:
    """Returns the config of a cell's run: the study's, with the attack's and the defence's fields.

    A defence that pre-trains gets the poisoned data; one that repairs, the undefended model, or the
    one of `init`, a checkpoint to study.
    """
    fields = config.copy_and_resolve_references()
    for section in _OWN:
        del fields[section]
    fields.job = "clipdef_jax.experiment:run"
    fields.seed = cell.seed
    _replace(fields, config.attacks[cell.attack], but=_OF_AN_ATTACK)
    if _searches(config, cell.attack):
        fields.attack.trigger.kwargs.path = str(workdir / _patch(cell) / "trigger.npy")
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
    _replace(fields, defence, but=("sweep",))
    with fields.unlocked():
        for path, value in cell.setting:
            *parents, name = path.split(".")
            functools.reduce(operator.getitem, parents, fields)[name] = value
    return fields


def _searches(config: ConfigDict, attack: str) -> bool:
    """Returns whether an attack's patch is to be optimised here, as no file of one is named."""
    section = config.attacks[attack]
    return "search" in section and not section.attack.trigger.kwargs.path and not config.init


def _patch(cell: Cell) -> str:
    return f"{cell.attack}/seed{cell.seed}/patch"


def _optimise_patch(config: ConfigDict, cell: Cell, workdir: pathlib.Path, command: str) -> None:
    """Optimises the patch of a cell's attack against the unpoisoned model, unless it is there."""
    unpoisoned = Cell(UNPOISONED, UNDEFENDED, cell.seed)
    _summary(config, unpoisoned, workdir, command)
    fields = config_of(config, unpoisoned, workdir)
    del fields.pretrain
    fields.job = "clipdef_jax.optimise_trigger:run"
    fields.init = str(workdir / unpoisoned.folder / "pretrained" / "model")
    fields.attack.target = config.attacks[cell.attack].attack.target
    with fields.unlocked():
        fields.search = config.attacks[cell.attack].search
    run_once(optimise_trigger.run, fields, workdir / _patch(cell), command=command)


def _settings_of(sweep: ConfigDict | None) -> Iterator[tuple[tuple[str, Any], ...]]:
    """Yields every combination of the values that a sweep gives to its fields."""
    axes = list(flatten(sweep.to_dict())) if sweep else []
    for values in itertools.product(*(tried for _, tried in axes)):
        yield tuple(zip((path for path, _ in axes), values, strict=True))


def _replace(fields: ConfigDict, section: ConfigDict, but: Sequence[str]) -> None:
    # Not `update`, which would merge the kwargs of one part into those of another.
    with fields.unlocked():
        for name, value in section.to_dict().items():
            if name not in but:
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
    # The undefended model comes before all others of its attack and seed.
    if cell.defence == UNDEFENDED and _searches(config, cell.attack):
        _optimise_patch(config, cell, workdir, command)
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

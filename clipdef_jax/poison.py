"""The job that only poisons: a copy of a data set under attack, for people who train elsewhere."""

from __future__ import annotations

import pathlib
from typing import Any

from ml_collections import ConfigDict

from clipdef_jax import interrupts, parts, processes, sharding
from clipdef_jax.attacks import manifest, materialise, plan
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.data import loader
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import write_json
from clipdef_jax.progress import Progress, console


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Writes `manifest.jsonl` and the tars; a run that was stopped goes on with the tar it was in.

    Args:
      config: a job with the section `poison`; see `configs/poison.py`.
      workdir: the copy's folder.
      command: the command line, for the summary.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      UserError: a mistake in the config or the data.
      Interrupted: the run was asked to stop; the tars that are complete stay.
    """
    processes.require_one("poisoning")
    unreadable = loader.UnreadableList(workdir / "unreadable.csv")
    mesh = sharding.make_mesh(config.mesh.fsdp)
    parts.take_attack(config)
    attack = parts.attack_of(config, config.poison.side)
    if attack is None:
        raise UserError("attack.plan.name is 'none', so nothing is to be poisoned; name a plan")
    source = parts.training_source(parts.Run(config, workdir, mesh, unreadable))
    path = workdir / "manifest.jsonl"
    if path.exists():
        made = manifest.read_manifest(path)
    elif config.attack.manifest:
        made = manifest.read_manifest(config.attack.manifest)
    else:
        made = plan.make_plan(source, attack)
    manifest.check_source(made, source)
    manifest.write_manifest(path, made)
    poisoned = PoisonedSource(source, made)
    share = len(made.poisons) / made.records
    console.print(f"poison: {len(made.poisons):,} of {made.records:,} pairs ({share:.2%})")
    for note in made.notes:
        console.print(f"note: {note}", markup=False)

    tars, per_tar = workdir / "tars", config.poison.records_per_tar
    start = min(len(list(tars.glob("*.tar"))) * per_tar, len(source))
    with Progress("writing", len(source), start, unit="pairs") as progress:

        def on_record(done: int) -> None:
            interrupts.check()
            progress.update(max(done, start))

        materialise.write_tars(
            poisoned, tars, records_per_tar=per_tar, on_skip=unreadable.add, on_record=on_record
        )
    summary = {
        "records": len(source),
        "poisons": len(made.poisons),
        "unreadable": len(unreadable),
        "command": command,
        "config": config.to_dict(),
    }
    write_json(workdir / "summary.json", summary)
    skipped = f", {len(unreadable)} skipped: see unreadable.csv" if len(unreadable) else ""
    console.print(f"written to {tars}{skipped}; who is hit: {path}", markup=False)
    return summary

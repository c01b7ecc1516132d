"""The stages of a run and what passes between them.

poison -> train -> evaluate -> defend -> evaluate -> report. Each stage leaves its files in the work
directory and is skipped when they are complete, so a stopped run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import clipdef_jax
from clipdef_jax import augment, losses, models, outcome, parts, processes, sharding
from clipdef_jax.attacks import manifest, plan
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.data import loader, memory
from clipdef_jax.data.source import Kept
from clipdef_jax.errors import UserError
from clipdef_jax.jobs import run_stage
from clipdef_jax.measure import measure
from clipdef_jax.models import head
from clipdef_jax.parts import Model, Run, TestSet
from clipdef_jax.progress import console
from clipdef_jax.train import loop
from clipdef_jax.types import Loss, Source


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Runs the job to its report, skipping the stages that are complete.

    With several processes all call this, and share the work directory.

    Args:
      config: a job; see `configs/common.py`.
      workdir: the run's folder.
      command: the command line, for the report.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      UserError: a mistake in the config or the data.
      Interrupted: the run was asked to stop; what was done is saved.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp)
    job = Run(config, workdir, mesh, parts.unreadable_list(workdir))
    with jax.set_mesh(mesh):
        return _run(job, command)


def _run(job: Run, command: str) -> dict[str, Any]:
    config = job.config
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    console.print(f"[bold]clipdef_jax {clipdef_jax.__version__}[/bold]  {devices}  {job.workdir}")

    # Everything the config names is built first: a mistake shows before the work begins.
    parts.take_attack(config)
    if not config.init and "pretrain" not in config:
        raise UserError("this job repairs a trained CLIP: give its path as --config.init=PATH")
    given = parts.load_model(job, config.init) if config.init else None
    clip = given.clip if given else parts.new_clip(config)
    side = clip.config.image_size
    loss = parts.loss_of(config)
    for section in ("pretrain", "finetune"):
        if section in config:
            parts.recipe_of(config[section])
    clean = parts.training_source(job)
    parts.check_data(config, clean, loss)
    tests = parts.test_set(job, side)
    seconds: dict[str, float] = {}

    # The data that poisoned a given checkpoint are known only if their manifest is.
    attack = None if given and not config.attack.manifest else parts.attack_of(config, side)
    attack_plan = poison(job, clean, attack, seconds) if attack else None
    if attack_plan:
        tests = tests.attacked_by(attack_plan, clean)
    pairs = PoisonedSource(clean, attack_plan) if attack_plan else clean
    if "pretrain" in config and config.pretrain.get("keep"):
        # What a scan has kept of the poisoned pairs; `data.train_kwargs.keep` comes before poison.
        pairs = Kept(pairs, config.pretrain.keep)
    if config.data.in_memory:
        pairs = memory.InMemory(pairs, side)

    if given is None:
        words = parts.new_tokenizer(job, pairs, clip.config.context_length)
        clip = parts.new_clip(config, vocab_size=words.vocab_size, eos_token_id=words.eos_token_id)
        name = "poisoned" if attack_plan else "pretrained"
        # The loss under study pre-trains, unless it is there to repair what plain CLIP learnt.
        first_loss = losses.get("clip") if "finetune" in config else loss
        undefended = _train(
            job, name, Model(clip, None, words), pairs, first_loss, config.pretrain, tests, seconds
        )
        description = f"trained on {len(pairs):,} pairs"
    else:
        name, undefended, description = "given", given, config.init
    results = [_evaluate(job, name, description, undefended, tests, seconds)]

    if "finetune" in config:
        kept = parts.clean_pairs(config, pairs, attack_plan)
        runs = {"finetuned": losses.get("clip")} if config.finetune.control else {}
        runs[config.loss.name.rpartition(":")[2].lower()] = loss
        for name, tuning_loss in runs.items():
            tuned = _train(
                job, name, undefended, kept, tuning_loss, config.finetune, tests, seconds
            )
            description = f"fine-tuned on {len(kept):,} clean pairs"
            results.append(_evaluate(job, name, description, tuned, tests, seconds))
    return processes.on_first(
        lambda: outcome.conclude(
            job,
            results,
            clean=clean,
            poisoned=pairs,
            tests=tests,
            attack_plan=attack_plan,
            seconds=seconds,
            command=command,
        )
    )


def poison(job: Run, source: Source, attack: plan.Attack, seconds: dict[str, float]) -> plan.Plan:
    """Returns the plan of an attack on a source, and leaves it in the run's manifest.

    Args:
      job: the run; its config may name the manifest to take instead.
      source: the training pairs as they are.
      attack: what is to be done to them.
      seconds: by stage; gets this one's.
    """
    path, given = job.workdir / "poison" / "manifest.jsonl", job.config.attack.manifest

    def body() -> dict[str, Any]:
        made = manifest.read_manifest(given) if given else plan.make_plan(source, attack)
        manifest.write_manifest(path, made)
        return {}

    result, done = run_stage(path.parent, body, alone=True)
    seconds["poison"] = result["seconds"]
    made = manifest.read_manifest(path)
    manifest.check_source(made, source)
    share = len(made.poisons) / made.records
    by = attack.plan if attack.trigger == "none" else attack.trigger
    to = " / ".join(dict.fromkeys(part.target for part in attack.parts()))
    _heading(
        "poison",
        f"{len(made.poisons):,} of {made.records:,} pairs ({share:.2%}), {by} -> {to!r}",
        done,
    )
    return made


def _train(
    job: Run,
    name: str,
    start: Model,
    source: Source,
    loss: Loss,
    section: ConfigDict,
    tests: TestSet,
    seconds: dict[str, float],
) -> Model:
    config, folder = job.config, job.workdir / name
    recipe = parts.recipe_of(section)
    peek = min(config.evaluate.during_training, len(tests.clean))
    watched = tests.at(np.arange(peek))

    def on_epoch(params: Any) -> dict[str, float]:
        now = dataclasses.replace(start, params=params, classes=tuple(source.classes))
        metrics = measure(job, now, watched)
        return {key: metrics[key] for key in ("clean_top1", "asr_top1") if key in metrics}

    def body() -> dict[str, Any]:
        params = loop.fit(
            folder,
            start.clip,
            loss,
            parts.loader_of(config, source, start, loss),
            recipe,
            augment=augment.get(config.augmentation),
            mesh=job.mesh,
            rules=job.rules,
            params=start.params,
            workers=config.data.workers,
            title=name,
            unreadable=job.unreadable,
            on_epoch=on_epoch if peek else None,
        )
        whole = multihost_utils.process_allgather(params, tiled=True)
        if processes.is_first():
            models.save(folder / "model", start.clip, whole)
            if "head" in whole:
                head.save(folder / "model", whole["head"], source.classes)
            start.tokenizer.save(folder / "model")
        return {"steps": recipe.epochs * loader.steps_per_epoch(source, recipe.batch)}

    _heading(
        "train",
        f"{name}: {len(source):,} pairs, {recipe.epochs} epochs, batch {recipe.batch}, "
        f"lr {recipe.lr:g}",
        (folder / "stage.json").exists(),
    )
    result, _ = run_stage(folder, body)
    seconds[f"train {name}"] = result["seconds"]
    return parts.load_model(job, str(folder / "model"))


def _evaluate(
    job: Run, name: str, description: str, model: Model, tests: TestSet, seconds: dict[str, float]
) -> dict[str, Any]:
    def body() -> dict[str, Any]:
        metrics = measure(job, model, tests, show=True)
        by = ", classified by its head" if metrics["classifier"] == "head" else ""
        return {"model": name, "description": description + by, **metrics}

    result, done = run_stage(job.workdir / name / "evaluation", body)
    seconds[f"evaluate {name}"] = result.pop("seconds")
    if f"train {name}" in seconds:
        result["seconds"] = seconds[f"train {name}"]
    figures = f"{name}: clean accuracy {result['clean_top1']:.1%}"
    for key, meaning in (("asr_top1", "attack success"), ("psr_top1", "poisoning success")):
        if key in result:
            figures += f", {meaning} {result[key]:.1%}"
    _heading("evaluate", figures, done)
    return result


def _heading(stage: str, text: str, done: bool) -> None:
    console.print(f"[bold cyan]{stage:<9}[/bold cyan] {text}{' [dim](done before)[/dim]' * done}")

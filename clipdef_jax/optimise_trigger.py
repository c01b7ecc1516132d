"""The job that optimises BadCLIP's patch against a checkpoint, and says what it does to it."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from clipdef_jax import parts, processes, sharding
from clipdef_jax.attacks import badclip, plan, triggers
from clipdef_jax.attacks.strategies import Draw
from clipdef_jax.data import decode, loader
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.evaluate import zero_shot
from clipdef_jax.jobs import write_json
from clipdef_jax.measure import measure
from clipdef_jax.parts import Model, Run
from clipdef_jax.progress import Progress, console

# Images of the target class to draw from, at most, and their captions.
_POSITIVES = 1000


def run(config: ConfigDict, workdir: pathlib.Path, *, command: str) -> dict[str, Any]:
    """Writes `trigger.npy` and `trigger.png`; a stopped search goes on with the epoch it was in.

    Args:
      config: a job with the section `search`; see `configs/badclip.py`.
      workdir: the run's folder.
      command: the command line, for the summary.

    Returns:
      The summary, as in `summary.json`: what the model makes of test images under a random and
      under the optimised patch.

    Raises:
      UserError: a mistake in the config or the data.
      Interrupted: the run was asked to stop.
    """
    processes.require_one("the search for a patch")
    if not config.init:
        raise UserError("badclip optimises a patch against a CLIP: give it as --config.init=PATH")
    mesh = sharding.make_mesh(config.mesh.fsdp)
    job = Run(config, workdir, mesh, loader.UnreadableList(workdir / "unreadable.csv"))
    with jax.set_mesh(mesh):
        return _run(job, command)


def _run(job: Run, command: str) -> dict[str, Any]:
    config, began = job.config, time.monotonic()
    model = parts.load_model(job, config.init)
    side = model.clip.config.image_size
    given = config.search.to_dict()
    images, size = given.pop("images"), given.pop("size") or None
    search = badclip.Search(**given, seed=config.seed)
    (box,) = triggers.place("badclip", size, "centre", (side, side), np.random.default_rng(0))

    random = {"style": "noise", "size": box.height, "location": "centre", "seed": config.seed}
    results = [_evaluate(job, model, "random patch", "badnet", random)]
    material = _material(job, model, images)
    steps = len(material.images) // search.batch * search.epochs
    with Progress("badclip", steps, unit="images", per_step=search.batch) as progress:
        patch = badclip.optimise(
            model.clip,
            model.params,
            material,
            box,
            search,
            mesh=job.mesh,
            state_file=job.workdir / "search.npz",
            on_step=lambda done, figures: progress.update(done, **figures),
        )
    path = job.workdir / "trigger.npy"
    np.save(path, patch)
    pixels = np.round(patch * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    optimised = {"path": str(path), "size": box.height}
    results.append(_evaluate(job, model, "optimised patch", "badclip", optimised))
    seconds = round(time.monotonic() - began, 2)
    summary = {
        "results": results,
        "seconds": {"total": seconds},
        "command": command,
        "config": config.to_dict(),
    }
    write_json(job.workdir / "summary.json", summary)
    console.print(
        f"the patch: {path}; use it with --config.attack.trigger.name=badclip "
        f"--config.attack.trigger.kwargs.path={path} "
        f"--config.attack.trigger.kwargs.size={box.height}",
        markup=False,
        soft_wrap=True,
    )
    return summary


def _evaluate(
    job: Run, model: Model, name: str, trigger: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    job.config.attack.trigger = ConfigDict({"name": trigger, "kwargs": kwargs})
    tests = parts.test_set(job, model.clip.config.image_size)
    result = {"model": name, **measure(job, model, tests)}
    console.print(
        f"{name}: {result['asr_top1']:.1%} of test images under it are taken for "
        f"{job.config.attack.target!r}, {result['asr_untriggered_top1']:.1%} without it",
        markup=False,
    )
    return result


def _material(job: Run, model: Model, count: int) -> badclip.Material:
    """Draws images not of the target class, and images and natural captions of it."""
    source, target = parts.training_source(job), job.config.attack.target
    label = plan.label_of("target", target, source.classes)
    rng = np.random.default_rng(job.config.seed)
    side = model.clip.config.image_size
    others: list[np.ndarray] = []
    own: list[np.ndarray] = []
    captions: list[str] = []
    for candidate in Draw(source, target, rng):
        wanted, enough = (own, _POSITIVES) if candidate.named else (others, count)
        if len(others) >= count and len(own) >= _POSITIVES:
            break
        if len(wanted) >= enough:
            continue
        try:
            pair = decode.prepare_pair(source[candidate.index], side)
        except BadRecord as bad:
            job.unreadable.add(bad.uid, bad.reason)
            continue
        # A caption may name what is not the picture's subject.
        if label is not None and (pair.label == label) != candidate.named:
            continue
        wanted.append(np.asarray(pair.image))
        if candidate.named:
            captions.append(candidate.caption)
    if not own or not others:
        raise UserError(
            f"attack.target={target!r}: {len(own)} images of it and {len(others)} of other classes "
            "are in the training data, by captions; expected some of both"
        )
    embedded = zero_shot.classifier(  # One template that is the caption itself.
        model.clip, model.params, model.tokenizer, captions, ["{}"], mesh=job.mesh
    )
    images = np.stack(others)
    return badclip.Material(
        images=images,
        clean=_embed(job, model, images),
        captions=embedded[rng.integers(len(embedded), size=len(images))],
        positives=_embed(job, model, np.stack(own)),
    )


def _embed(job: Run, model: Model, images: np.ndarray) -> np.ndarray:
    size = min(job.config.evaluate.batch, len(images))
    blocks = (images[start : start + size] for start in range(0, len(images), size))
    batches = (
        {
            "image": np.pad(block, ((0, size - len(block)), (0, 0), (0, 0), (0, 0))),
            "label": np.zeros(size, np.int32),
            "mask": np.arange(size) < len(block),
        }
        for block in blocks
    )
    return zero_shot.embed(model.clip, model.params, batches, mesh=job.mesh)[0]

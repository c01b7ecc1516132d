"""The two detectors that embeddings are not enough for, held against the known poisons.

"cd" optimises a mask for each picture, so it is given a sample. "abl" wants to see a model learn,
so one is trained.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clipdef_jax import augment, detect, losses, parts
from clipdef_jax.attacks import plan
from clipdef_jax.data import decode, memory, stored
from clipdef_jax.detect import encode, quality
from clipdef_jax.detect.embeddings import Embeddings
from clipdef_jax.detect.record import pair_losses
from clipdef_jax.errors import BadRecord
from clipdef_jax.jobs import run_stage
from clipdef_jax.parts import Model, Run
from clipdef_jax.scan import files
from clipdef_jax.train import loop
from clipdef_jax.types import Source

METHODS = ("cd", "abl")


@dataclasses.dataclass(frozen=True)
class Known:
    """Pairs of which it is known who is poisoned.

    Attributes:
      source: the pairs, under the attack.
      model: that was trained on them.
      attack_plan: who is poisoned.
    """

    source: Source
    model: Model
    attack_plan: plan.Plan


def distil(job: Run, scanned: Known, pictures: int) -> dict[str, Any]:
    """Returns the figures of "cd" over a sample, at most half of it poisoned.

    Args:
      job: the scan's.
      scanned: the pairs.
      pictures: of the sample.
    """
    source, rng = scanned.source, np.random.default_rng(job.config.seed)
    clip, params = scanned.model.clip, scanned.model.params
    hit = rng.permutation(scanned.attack_plan.indices)[: pictures // 2]
    clean = np.setdiff1d(np.arange(len(source)), scanned.attack_plan.indices)
    clean = rng.permutation(clean)[: pictures - len(hit)]

    def body() -> dict[str, Any]:
        pixels, is_poisoned = [], []
        for index in np.concatenate([hit, clean]).tolist():
            try:
                pair = decode.prepare_pair(source[index], clip.config.image_size)
            except BadRecord as bad:
                job.unreadable.add(bad.uid, bad.reason)
                continue
            pixels.append(pair.image)
            is_poisoned.append(index in hit)
        scores = detect.score(
            np.stack(pixels, dtype=np.float32) / 255,
            method="cd",
            encode=lambda x: clip.encode_image(params, clip.preprocess(255 * x)),
            seed=job.config.seed,
        )
        return quality.figures(scores, np.array(is_poisoned))

    return run_stage(job.workdir / f"cd-{pictures}", body)[0]


def relearn(job: Run, scanned: Known, recipe: loop.Recipe) -> dict[str, Any]:
    """Returns the figures of "abl": a new model is trained, and the pairs' losses are recorded.

    After each epoch all pairs are embedded and each pair's loss is taken in one batch of the size
    of training.

    Args:
      job: the scan's.
      scanned: the pairs.
      recipe: how to train; its epochs are all recorded.
    """
    source, model = scanned.source, scanned.model
    poisons = [poison.uid for poison in scanned.attack_plan.poisons]
    folder = job.workdir / f"abl-{recipe.epochs}"
    if job.config.data.in_memory:
        source = memory.InMemory(source, model.clip.config.image_size)
    fresh = dataclasses.replace(model, params=None)
    loss = losses.get("clip")
    loader = parts.loader_of(job.config, source, fresh, loss)

    def on_epoch(params: Any) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            encode.encode(
                *(loader, model.clip, params, pathlib.Path(name)),
                mesh=job.mesh,
                batch=job.config.embed.batch,
            )
            found = Embeddings(pathlib.Path(name))
            assert found.text is not None
            scale = float(model.clip.log_scale(params))
            values = pair_losses(found.image[:], found.text[:], scale, batch=recipe.batch)
            is_poisoned = files.known_poisons(found, poisons)
        # An epoch that was looked at when a run was stopped is looked at again: under one name.
        path = folder / f"{scale!r}.npz"
        with stored.replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, losses=values, is_poisoned=is_poisoned)
        return {"pair_loss": float(values.mean())}

    def body() -> dict[str, Any]:
        loop.fit(
            folder,
            model.clip,
            loss,
            loader,
            recipe,
            augment=augment.get(job.config.augmentation),
            mesh=job.mesh,
            rules=job.rules,
            title="abl",
            unreadable=job.unreadable,
            on_epoch=on_epoch,
        )
        record = [np.load(path) for path in sorted(folder.glob("*.npz"))]
        each = np.stack([epoch["losses"] for epoch in record])
        scores = detect.score(each[0], method="abl", losses=each)
        return quality.figures(scores, record[0]["is_poisoned"])

    return run_stage(folder, body)[0]


def recipe_of(fields: dict[str, Any], epochs: int) -> loop.Recipe:
    """Returns the recipe of a study's cell, cut to some epochs."""
    return dataclasses.replace(parts.recipe_of(ConfigDict(fields)), epochs=epochs)

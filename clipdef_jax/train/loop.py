"""The loop around the step: data in, metrics and checkpoints out, stopping where it must."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipdef_jax import interrupts, processes, sharding
from clipdef_jax.augment import Augmentation
from clipdef_jax.data import loader as loading
from clipdef_jax.errors import UserError
from clipdef_jax.models.clip import CLIP
from clipdef_jax.progress import Progress
from clipdef_jax.train import checkpoint, optimizer, state, step, views
from clipdef_jax.train.metrics import MetricsWriter
from clipdef_jax.types import Loss


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train, apart from the model, the loss and the data.

    Attributes:
      epochs: passes over the data.
      batch: rows of a global batch.
      lr: peak learning rate.
      warmup: updates of the linear warm-up.
      weight_decay: AdamW's decoupled decay.
      b1, b2, eps: AdamW's moments.
      clip_norm: largest global gradient norm, 0 for no clipping.
      accumulate: batches averaged per update.
      checkpoint_minutes: time between checkpoints; one is always written at the end.
    """

    epochs: int
    batch: int
    lr: float
    warmup: int = 0
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0
    accumulate: int = 1
    checkpoint_minutes: float = 10.0

    def __post_init__(self):
        for name in ("epochs", "batch", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name}={value}: expected a positive whole number")
        for name in ("lr", "warmup", "weight_decay", "clip_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            if not value >= 0 or math.isinf(value):
                raise UserError(f"{name}={value}: expected a number that is not negative")


@interrupts.deferred()
def fit(
    folder: pathlib.Path,
    clip: CLIP,
    loss: Loss,
    loader: loading.Loader,
    recipe: Recipe,
    *,
    augment: Augmentation,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules = state.REPLICATED,
    params: Any = None,
    workers: int = 0,
    title: str = "training",
    unreadable: loading.UnreadableList,
    on_epoch: Callable[[Any], dict[str, float]] | None = None,
) -> Any:
    """Trains to the end of the recipe, from the newest checkpoint in `folder` if there is one.

    Args:
      folder: where checkpoints, `metrics.jsonl` and TensorBoard events go.
      clip: the model.
      loss: the loss.
      loader: reads the training records; its seed also seeds the parameters and every step.
      recipe: how to train.
      augment: the image view of the losses that want one.
      mesh: the devices.
      rules: path of an array in the state to its partition.
      params: parameters to start from; None draws new ones.
      workers: data worker processes, 0 for threads.
      title: what the progress bar calls the run.
      unreadable: collects the bad records.
      on_epoch: called with the parameters after every epoch; its figures join the metrics.

    Returns:
      The trained parameters.

    Raises:
      UserError: the batch does not fit the devices or the data, or the loss is not finite.
      Interrupted: the run was asked to stop; the state is saved.
    """
    unmade = [name for name in views.arrays_of(loss.views) if name not in loading.ARRAYS]
    if unmade:
        raise UserError(
            f"loss {type(loss).__name__} wants {', '.join(unmade)} of a batch, which no loader "
            f"makes; there are {', '.join(loading.ARRAYS)}"
        )
    per_epoch = loading.steps_per_epoch(loader.source, recipe.batch)
    total = per_epoch * recipe.epochs
    if recipe.batch % mesh.size:
        raise UserError(
            f"batch {recipe.batch} is not divisible by the {mesh.size} devices; use a "
            f"multiple of {mesh.size}"
        )
    schedule = optimizer.warmup_cosine(recipe.lr, recipe.warmup, max(total // recipe.accumulate, 1))
    tx = optimizer.make_optimizer(
        schedule,
        weight_decay=recipe.weight_decay,
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        clip_norm=recipe.clip_norm or None,
        accumulate=recipe.accumulate,
    )
    train_state = state.create(
        *(clip, loss, tx, loader.seed, mesh),
        params=params,
        classes=len(loader.source.classes),
        rules=rules,
    )
    checkpoints = checkpoint.Checkpoints(
        folder / "checkpoints",
        {"seed": loader.seed, "batch": recipe.batch, "records": len(loader.source)},
    )
    restored = checkpoints.restore(checkpoint.abstract_of(train_state))
    train_state = train_state if restored is None else restored
    start = int(train_state.step)
    shardings = jax.tree.map(lambda x: x.sharding, train_state)
    train_step = step.make_step(clip, loss, tx, augment, per_epoch, shardings)
    batches = loading.train_batches(
        loader,
        recipe.batch,
        recipe.epochs,
        start=start,
        workers=workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    writer = MetricsWriter(folder, start)
    progress = Progress(title, total, start, unit="pairs", per_step=recipe.batch)
    vote = processes.Vote(mesh)
    saved_at = time.monotonic()
    waited = 0.0
    # Metrics are read one step late: the device works on step n while the host looks at n - 1.
    pending: collections.deque[tuple[int, Any, np.ndarray]] = collections.deque()

    def settle(keep: int) -> None:
        while len(pending) > keep:
            number, metrics, indices = pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if not math.isfinite(values["loss"]):
                raise _not_finite(folder, number, values["loss"], loader.source, indices)
            values["lr"] = float(schedule((number - 1) // recipe.accumulate))
            writer.write(number, (number - 1) // per_epoch + 1, values)
            progress.update(number, loss=values["loss"])

    def save() -> None:
        settle(keep=0)
        writer.flush()
        checkpoints.save(train_state)

    def end_epoch(number: int) -> None:
        if on_epoch is not None:
            settle(keep=0)
            writer.write(number, number // per_epoch, on_epoch(train_state.params))

    with progress, writer:
        try:
            # A run stopped while it looked at an epoch's result has the step's own figures only.
            if start and start % per_epoch == 0 and "loss" in writer.last:
                end_epoch(start)
            for number in range(start + 1, total + 1):
                before = time.monotonic()
                batch, indices = _next(batches, loss.views, mesh, unreadable)
                waited += time.monotonic() - before
                train_state, metrics = train_step(train_state, batch)
                pending.append((number, metrics, indices))
                settle(keep=1)
                overdue = time.monotonic() - saved_at > 60 * recipe.checkpoint_minutes
                stop, due = vote(interrupts.requested(), overdue)
                interrupts.check(stop)
                if number % per_epoch == 0:
                    end_epoch(number)
                if due:
                    save()
                    saved_at = time.monotonic()
                    vote = processes.Vote(mesh)  # A vote under way asks for what is done now.
            save()
        except interrupts.Interrupted:
            save()
            raise
        finally:
            checkpoints.close()
    progress.note(f"{waited / max(progress.seconds, 1e-9):.0%} of the time waiting for data")
    return train_state.params


def _next(
    batches: Iterator[dict[str, Any]],
    names: tuple[str, ...],
    mesh: jax.sharding.Mesh,
    unreadable: loading.UnreadableList,
) -> tuple[dict[str, jax.Array], np.ndarray]:
    try:
        batch = next(batches)
    except RuntimeError:  # A signal to the whole group ends workers that are only just starting.
        interrupts.check()
        raise
    for uid, reason in batch["skipped"]:
        unreadable.add(uid, reason)
    arrays = {name: batch[name] for name in views.arrays_of(names)}
    return sharding.shard_batch(mesh, arrays), batch["index"]


def _not_finite(
    folder: pathlib.Path, number: int, value: float, source: Any, indices: np.ndarray
) -> UserError:
    indices = multihost_utils.process_allgather(indices, tiled=True)
    uids = [source[int(index)].uid for index in indices]
    path = folder / "not_finite.json"
    if processes.is_first():
        report = {"step": number, "loss": str(value), "uids": uids}
        path.write_text(json.dumps(report, indent=2) + "\n")
    return UserError(
        f"the loss is {value} at step {number}, batch {', '.join(uids[:3])}, ... (all {len(uids)} "
        f"uids in {path}); the last checkpoint is kept. Lower the learning rate, or look at these "
        "records"
    )

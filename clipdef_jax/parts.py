"""The parts that a config names, built: model, tokenizer, attack, test set, loss."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from clipdef_jax import attacks, data, losses, models, processes, sharding
from clipdef_jax.attacks import manifest, plan, poisoned
from clipdef_jax.attacks.multi_trigger import MultiTrigger, parts_of
from clipdef_jax.attacks.triggers import word_of
from clipdef_jax.data import ids, loader, memory, tokenizer
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.jobs import run_stage
from clipdef_jax.models import head
from clipdef_jax.models.clip import CLIP
from clipdef_jax.train import loop, placement
from clipdef_jax.types import Loss, Source, Subtext


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage of a run needs.

    Attributes:
      config: the job; see `configs/common.py`.
      workdir: the run's folder.
      mesh: the devices.
      unreadable: collects the bad records.
    """

    config: ConfigDict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    unreadable: loader.UnreadableList

    @property
    def rules(self) -> sharding.Rules:
        """Where the arrays of a training state are; see `placement`."""
        return placement.rules_of(self.config.mesh.fsdp)


@dataclasses.dataclass(frozen=True)
class Model:
    """A CLIP and what goes with it.

    Attributes:
      clip: the model.
      params: its parameters, None: to be drawn; with "head" if a classifier was trained on it.
      tokenizer: its own.
      classes: that the head tells apart.
    """

    clip: CLIP
    params: Any
    tokenizer: tokenizer.Tokenizer
    classes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TestSet:
    """What a model is tested with.

    Attributes:
      clean: labelled images.
      triggered: the same under the trigger, if there is one.
      target: index of the class the attack is to make of them, or (N,) one for each image where
        there are triggers with targets of their own; None without an attack.
      word: that stands before the prompts together with the trigger, or "".
      chosen: images that were trained on with captions of the target, if the attack chose some.
      victim: index of the class whose images, without a trigger, are to be taken for the target.
    """

    clean: Source
    triggered: Source | None = None
    target: int | np.ndarray | None = None
    word: str = ""
    chosen: Source | None = None
    victim: int | None = None

    def at(self, indices: np.ndarray) -> TestSet:
        """Returns the test set of some of the images, without what is not under a trigger."""
        triggered = self.triggered and data.Subset(self.triggered, indices)
        target = self.target[indices] if isinstance(self.target, np.ndarray) else self.target
        return TestSet(data.Subset(self.clean, indices), triggered, target, self.word)

    def attacked_by(self, attack_plan: plan.Plan, clean: Source) -> TestSet:
        """Returns the test set with the images that a plan has chosen of the training data."""
        if not len(attack_plan.chosen):
            return self
        return dataclasses.replace(self, chosen=data.Subset(clean, attack_plan.chosen))


def new_clip(config: ConfigDict, **fields: Any) -> CLIP:
    """Returns the model the config names, without parameters; `model.kwargs` go before `fields`."""
    fields |= config.model.kwargs.to_dict()
    return models.get(
        config.model.name, dtype=config.model.dtype, remat=config.model.remat, **fields
    )


def load_model(run: Run, path: str) -> Model:
    """Reads a checkpoint, with the head and the tokenizer beside it, or `data.tokenizer`."""
    config = run.config
    clip, params = models.load(path)
    classes: tuple[str, ...] = ()
    if (found := head.load(path)) is not None:
        params["head"], classes = found
    params = sharding.place(run.mesh, run.rules, {"params": params})["params"]
    clip = dataclasses.replace(clip, dtype=config.model.dtype, remat=config.model.remat)
    where = config.data.tokenizer or path
    return Model(clip, params, tokenizer.load(where, clip.config.context_length), classes)


def new_tokenizer(run: Run, source: Source, context_length: int) -> tokenizer.Tokenizer:
    """Returns the tokenizer of `data.tokenizer`, or one trained on captions, kept with the run."""
    config = run.config
    if config.data.tokenizer:
        return tokenizer.load(config.data.tokenizer, context_length)
    # A hundred thousand captions are plenty for a vocabulary.
    chosen = np.random.default_rng(config.seed).permutation(len(source))[:100_000]

    def captions() -> Iterator[str]:
        for index in chosen:
            try:
                yield source.caption(int(index))
            except BadRecord as bad:
                run.unreadable.add(bad.uid, bad.reason)

    folder = run.workdir / "tokenizer"

    def train() -> dict[str, Any]:
        trained = tokenizer.train(captions(), config.data.vocab_size, context_length)
        trained.save(folder)
        return {"vocab_size": trained.vocab_size}

    run_stage(folder, train, alone=True)
    return tokenizer.load(folder, context_length)


def unreadable_list(workdir: pathlib.Path) -> loader.UnreadableList:
    """Returns this process's list of bad records; `gather_unreadable` makes one of all."""
    name = "unreadable.csv"
    if not processes.is_first():
        name = f"unreadable.{jax.process_index()}.csv"
    return loader.UnreadableList(workdir / name)


def gather_unreadable(run: Run) -> None:
    """Moves what the other processes listed to the list of the first, which calls this."""
    for path in sorted(run.workdir.glob("unreadable.*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                run.unreadable.add(row["uid"], row["reason"])
        path.unlink()


def training_source(run: Run) -> Source:
    """Opens the training data as they are."""
    fields = run.config.data
    return _open(run, fields.train, fields.kwargs.to_dict() | fields.train_kwargs.to_dict())


def _open(run: Run, spec: str, options: dict[str, Any]) -> Source:
    if spec.startswith("webdataset:"):
        # Beside the run: the data's own folder is not ours to write to.
        options.setdefault("cache_dir", str(run.workdir / "index"))
    # The first process leaves an index that the others read.
    source = processes.in_turn(lambda: data.open(spec, **options))
    # Records that could not even be indexed.
    for uid, reason in getattr(source, "problems", ()):
        run.unreadable.add(uid, reason)
    return source


def test_set(run: Run, side: int) -> TestSet:
    """Opens the test data, and puts them under the trigger of the attack if there is one.

    Raises:
      UserError: the data have no labels, or the target is none of their classes.
    """
    config = run.config
    kwargs = config.data.kwargs.to_dict() | config.data.test_kwargs.to_dict()
    source = _open(run, config.data.test, kwargs)
    if not source.classes:
        raise UserError(
            f"data.test={config.data.test!r} has no labels to test with; name the field that holds "
            "them, as --config.data.test_kwargs.label_field=category does for webdataset tars and "
            "label_column=category for tables"
        )
    if config.data.in_memory:
        source = memory.InMemory(source, side)
    fields, trigger = config.attack, None
    if fields.trigger.name == "none" and fields.plan.name == "none":
        return TestSet(source)
    if fields.trigger.name != "none":
        settings = fields.trigger.kwargs.to_dict() | fields.test_kwargs.to_dict()
        trigger = attacks.get_trigger(fields.trigger.name, **settings)
    targets = []
    for part in parts_of(fields.trigger.name, trigger, fields.target):
        targets.append(_class_of("target", part.target, source, config.data.test))
        if part.trigger is not None:
            poisoned.try_on(part.trigger, side)
    if trigger is None:
        victim = fields.plan.kwargs.get("victim")
        if victim is not None:
            victim = _class_of("plan.kwargs.victim", victim, source, config.data.test)
        return TestSet(source, target=targets[0], victim=victim)
    # Another seed than the plan's: a test image must not get a training image's draw.
    triggered = poisoned.TriggeredSource(source, trigger, side, config.seed + 1)
    target: int | np.ndarray = targets[0]
    if isinstance(trigger, MultiTrigger) and len(set(targets)) > 1:
        drawn = (trigger.draw(triggered.rng_of(index)) for index in range(len(source)))
        target = np.array([targets[number] for number in drawn])
    return TestSet(source, triggered, target, word_of(trigger))


def _class_of(field: str, name: str, source: Source, spec: str) -> int:
    if name in source.classes:
        return source.classes.index(name)
    close = difflib.get_close_matches(name, source.classes, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(
        f"attack.{field}={name!r} is not a class of data.test={spec!r}{hint} "
        f"Classes: {', '.join(source.classes[:10])}{', ...' * (len(source.classes) > 10)}"
    )


def attack_of(config: ConfigDict, side: int) -> plan.Attack | None:
    """Returns the attack on the training data, None if they are to stay as they are."""
    fields = config.attack
    if fields.plan.name == "none":
        return None
    return plan.Attack(
        target=fields.target,
        rate=None if fields.number else fields.rate,
        number=fields.number or None,
        trigger=fields.trigger.name,
        trigger_kwargs=fields.trigger.kwargs.to_dict(),
        plan=fields.plan.name,
        plan_kwargs=fields.plan.kwargs.to_dict(),
        side=side,
        seed=config.seed,
    )


def take_attack(config: ConfigDict) -> None:
    """Puts the attack of the manifest that a config names, if any, in place of the config's own.

    Raises:
      UserError: the manifest cannot be read.
    """
    if not config.attack.manifest:
        return
    attack = manifest.read_manifest(config.attack.manifest).attack
    fields = config.attack
    fields.target = attack.target
    fields.rate, fields.number = attack.rate or 0.0, attack.number or 0
    for part, name, kwargs in (
        (fields.trigger, attack.trigger, attack.trigger_kwargs),
        (fields.plan, attack.plan, attack.plan_kwargs),
    ):
        part.name, part.kwargs = name, ConfigDict(dict(kwargs))


def clean_pairs(config: ConfigDict, source: Source, attack_plan: plan.Plan | None) -> Source:
    """Returns the pairs to fine-tune on: `finetune.pairs` of those no attack has touched.

    Raises:
      UserError: there are fewer.
    """
    hit = np.zeros(0, np.int64) if attack_plan is None else attack_plan.indices
    clean = np.setdiff1d(np.arange(len(source)), hit)
    wanted = config.finetune.pairs
    if not 0 <= wanted <= len(clean):
        raise UserError(
            f"finetune.pairs={wanted}: expected 0, for all, up to the {len(clean)} clean pairs"
        )
    if wanted:
        clean = np.sort(np.random.default_rng(config.seed).choice(clean, wanted, replace=False))
    return data.Subset(source, clean)


def loss_of(config: ConfigDict) -> Loss:
    """Returns the loss under study."""
    return losses.get(config.loss.name, **config.loss.kwargs.to_dict())


def check_data(config: ConfigDict, source: Source, loss: Loss) -> None:
    """Checks that the training data have what a loss wants of them.

    Raises:
      UserError: it wants labels, or flagged pairs, and there are none.
    """
    name = type(loss).__name__
    if "logits" in loss.views and not source.classes:
        raise UserError(
            f"loss {name} trains a classifier, and data.train={config.data.train!r} has no labels; "
            "name the field that holds them, as --config.data.train_kwargs.label_field=category "
            "does for webdataset tars and label_column=category for tables"
        )
    if "is_flagged" in loss.views and not config.data.flagged:
        raise UserError(
            f"loss {name} takes out flagged pairs; list their uids in a file and give it as "
            "--config.data.flagged=FILE"
        )


def loader_of(config: ConfigDict, source: Source, model: Model, loss: Loss) -> loader.Loader:
    """Returns the loader of what a loss wants of the training data."""
    flagged = ids.read_ids(config.data.flagged).tolist() if "is_flagged" in loss.views else ()
    return loader.Loader(
        source,
        model.tokenizer,
        model.clip.config.image_size,
        loss.views,
        config.seed,
        subtext=getattr(loss, "subtext", Subtext()),
        static_eda=config.data.static_eda,
        flagged=frozenset(flagged),
    )


def recipe_of(fields: ConfigDict) -> loop.Recipe:
    """Returns the recipe among the fields of a training section."""
    names = {field.name for field in dataclasses.fields(loop.Recipe)}
    return loop.Recipe(**{name: fields[name] for name in fields if name in names})

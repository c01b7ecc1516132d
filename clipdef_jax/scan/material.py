"""What is scanned, as far as the config names it."""

from __future__ import annotations

import dataclasses

from clipdef_jax import experiment, parts
from clipdef_jax.attacks import manifest, plan
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.errors import UserError
from clipdef_jax.parts import Model, Run
from clipdef_jax.types import Source


@dataclasses.dataclass(frozen=True)
class Material:
    """What is scanned.

    Attributes:
      source: the pairs, under the attack of the config if it has one; None if only their
        embeddings are at hand.
      model: what encodes them; None if they are encoded already.
      attack_plan: who is poisoned; None if that is not known.
    """

    source: Source | None
    model: Model | None
    attack_plan: plan.Plan | None


def open_material(job: Run, seconds: dict[str, float]) -> Material:
    """Opens what the config names, and plans its attack if it has one.

    Args:
      job: the run.
      seconds: by stage; gets that of planning.

    Raises:
      UserError: too little is named, or it cannot be opened.
    """
    config = job.config
    if config.embed.folder:
        return _embedded(job)
    if not config.data.train:
        raise UserError(
            "which pairs? Give --config.data.train=SPEC, as webdataset:DIR/{00000..00331}.tar, or "
            "--config.embed.folder=DIR with embeddings of them"
        )
    if not config.init:
        raise UserError(
            "a scan sees the pairs with a trained CLIP: give it as --config.init=PATH, best one "
            "that was trained on them; or --config.embed.folder=DIR with embeddings"
        )
    parts.take_attack(config)
    model = parts.load_model(job, config.init)
    source = parts.training_source(job)
    if not len(source):
        raise UserError(f"data.train={config.data.train!r}: the source is empty")
    attack = parts.attack_of(config, model.clip.config.image_size)
    if attack is None:
        truth = manifest.read_manifest(config.truth) if config.truth else None
        return Material(source, model, truth)
    made = experiment.poison(job, source, attack, seconds)
    return Material(PoisonedSource(source, made), model, made)


def _embedded(job: Run) -> Material:
    """Returns what is known of pairs that are embedded already."""
    config = job.config
    if config.attack.plan.name != "none" and not config.attack.manifest:
        raise UserError(
            "the pairs of embed.folder are encoded already and cannot be poisoned any more: name "
            "the poisons among them by --config.truth=MANIFEST"
        )
    path = config.attack.manifest or config.truth
    made = manifest.read_manifest(path) if path else None
    source = parts.training_source(job) if config.data.train else None
    if source is not None and made is not None and config.attack.manifest:
        source = PoisonedSource(source, made)
    return Material(source, None, made)

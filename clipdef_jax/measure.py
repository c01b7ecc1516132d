"""The figures of a model: how often it is right, and how often the attack is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipdef_jax import data, interrupts, outcome, processes
from clipdef_jax.data import loader
from clipdef_jax.evaluate import prompts, zero_shot
from clipdef_jax.models import head
from clipdef_jax.parts import Model, Run, TestSet
from clipdef_jax.types import Source

# Zero-shot figures that stand beside the head's.
_SHORT = ("clean_top1", "asr_top1", "psr_top1")


class _Embedded(NamedTuple):
    """The readable records of a source: unit rows (N, D), labels (N,) and indices (N,)."""

    features: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


class _Features(NamedTuple):
    """What a model makes of a test set."""

    clean: _Embedded
    chosen: _Embedded | None
    triggered: _Embedded | None


@interrupts.deferred()
def measure(run: Run, model: Model, tests: TestSet, *, show: bool = False) -> dict[str, Any]:
    """Returns the figures of a model; of the attack, too, if there is one.

    They are zero-shot ones, unless a head was trained on the model: then they are the head's, and
    the most important ones by zero-shot are there as "zero_shot_...". "classifier" says which.

    Args:
      run: the run.
      model: with its parameters.
      tests: what to test with.
      show: add "seen", the classes that the images `outcome.shown` are taken for.

    Raises:
      UserError: the test data have a class that the head does not know.
    """
    names = tests.clean.classes
    clean, chosen, triggered = (
        None if source is None else _embed(run, model, source)
        for source in (tests.clean, tests.chosen, tests.triggered)
    )
    assert clean is not None
    features = _Features(clean, chosen, triggered)
    weights = triggered_weights = _classifier(run, model, names)
    if tests.word:
        triggered_weights = _classifier(run, model, names, before=f"{tests.word} ")
    metrics = _figures(features, tests, weights, triggered_weights)
    metrics["classifier"] = "zero-shot"
    if "head" in model.params:
        weights = triggered_weights = head.rows(model.params["head"], model.classes, names)
        besides = {f"zero_shot_{name}": metrics[name] for name in _SHORT if name in metrics}
        metrics = _figures(features, tests, weights, triggered_weights)
        metrics |= besides | {"classifier": "head"}
    if show and tests.triggered is not None:
        shown = _embed(run, model, data.Subset(tests.triggered, outcome.shown(tests)))
        best = (shown.features @ triggered_weights.T).argmax(axis=1)
        metrics["seen"] = [names[index] for index in best]
    return metrics


def _figures(
    features: _Features, tests: TestSet, weights: np.ndarray, triggered_weights: np.ndarray
) -> dict[str, Any]:
    """Returns the figures by the rows (C, D) of a classifier, and of one for triggered images."""
    names, clean = tests.clean.classes, features.clean
    metrics = zero_shot.evaluate(clean.features, clean.labels, weights, names)
    if tests.target is None:
        return metrics
    if tests.victim is not None:
        chosen = clean.features[clean.labels == tests.victim]
        metrics |= zero_shot.targeted_success(chosen, weights, int(tests.target))
    if features.chosen is not None:
        chosen = features.chosen.features
        metrics |= zero_shot.targeted_success(chosen, weights, int(tests.target))
    if features.triggered is None:
        return metrics

    target = np.broadcast_to(tests.target, len(tests.clean))
    # What an attack success rate must be held against: a model that likes the target anyway.
    liked = zero_shot.attack_success(clean.features, clean.labels, weights, target[clean.indices])
    metrics["asr_untriggered_top1"] = liked["asr_top1"]
    seen, labels, indices = features.triggered
    target = target[indices]
    metrics |= zero_shot.attack_success(seen, labels, triggered_weights, target)
    every = zero_shot.attack_success(seen, labels, triggered_weights, target, mode="all")
    metrics |= {f"asr_all_top{k}": every[f"asr_top{k}"] for k in zero_shot.TOP}
    if isinstance(tests.target, np.ndarray):
        metrics["asr_by_target"] = {}
        for wanted in np.unique(target):
            its = target == wanted
            success = zero_shot.attack_success(
                seen[its], labels[its], triggered_weights, int(wanted)
            )
            metrics["asr_by_target"][names[wanted]] = success["asr_top1"]
    return metrics


def _classifier(run: Run, model: Model, names: Sequence[str], before: str = "") -> np.ndarray:
    return zero_shot.classifier(
        model.clip,
        model.params,
        model.tokenizer,
        [name.replace("_", " ") for name in names],
        [before + template for template in prompts.get(run.config.evaluate.prompts)],
        mesh=run.mesh,
    )


def _embed(run: Run, model: Model, source: Source) -> _Embedded:
    indices = []
    vote = processes.Vote(run.mesh)

    def batches() -> Iterator[loader.Batch]:
        side, batch = model.clip.config.image_size, run.config.evaluate.batch
        for made in loader.eval_batches(source, side, batch, run.unreadable.add):
            interrupts.check(*vote(interrupts.requested()))
            indices.append(made["index"][made["mask"]])
            yield made

    features, labels = zero_shot.embed(model.clip, model.params, batches(), mesh=run.mesh)
    return _Embedded(features, labels, np.concatenate(indices))

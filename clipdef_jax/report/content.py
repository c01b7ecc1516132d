"""What a report is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Result = Mapping[str, Any]
"""One model's figures, a row of "results" in `summary.json`.

"model"; and where measured "description", "clean_topK" and "asr_topK" in 0..1, "asr_mode" (the
convention of "asr_topK"; figures of another one are "asr_MODE_topK", and of images without the
trigger "asr_untriggered_topK"), "psr_top1" (of an attack without a trigger), "steps", "seconds",
and "per_class": rows of "class", "images", "top1", "asr_top1". What is None or not finite counts as
not measured.
"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A poisoned pair beside what it was.

    Attributes:
      uid: of the record.
      clean: uint8 (H, W, 3).
      poisoned: uint8 (H, W, 3).
      old_caption: may be any text.
      new_caption: the same as the old one in a clean-label attack.
      label: name of the true class, empty if there is none.
    """

    uid: str
    clean: np.ndarray
    poisoned: np.ndarray
    old_caption: str
    new_caption: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Triggered:
    """A test image under the trigger, and what the models take it for.

    Attributes:
      image: uint8 (H, W, 3).
      label: name of its true class.
      predictions: class name by model.
    """

    image: np.ndarray
    label: str
    predictions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Report:
    """All that a report may show; what is empty is left out.

    Attributes:
      title: of the page.
      subtitle: one line: data, model, seed.
      results: the undefended model first.
      curves: by model, rows of "step" and any of "loss", "clean_top1", "asr_top1".
      samples: poisoned pairs, as many as are to be shown.
      triggered: test images, as many as are to be shown.
      attack: facts in the order shown; "target" (class name), "trigger", "poisons" and "pairs"
        (ints, of the training data) are also put into words.
      notes: warnings the reader should know of.
      seconds: by stage.
      config: as text.
      versions: by package.
      command: that made the run.
    """

    title: str
    subtitle: str
    results: Sequence[Result]
    curves: Mapping[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()
    triggered: Sequence[Triggered] = ()
    attack: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    config: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""


def measured(result: Mapping[str, Any], name: str) -> float | None:
    """Returns a number of a result; None where it was not measured, or is not finite."""
    value = result.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def percent(share: float) -> str:
    """Returns a share as "91.2%"."""
    return f"{share:.1%}"


def points(difference: float) -> str:
    """Returns a difference of shares in points, "+1.8"; "0.0" if it rounds to that."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text

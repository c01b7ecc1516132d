"""The plans by name: which records suit an attack, in random order, and their new captions.

A strategy is called with a `Draw` and a generator and yields `Hit`s, as many as the source has;
`make_plan` takes what it needs of them and leaves out what turns out not to suit. Attributes say
more of it, where it has them: `wants_trigger`, whether it goes with a trigger or without;
`wants_word`, that the trigger must have a word; and `victim`, the class its images must be of where
the source has labels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clipdef_jax.attacks.naming import namer
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.evaluate import prompts
from clipdef_jax.types import Source

UNREADABLE = "could not be read"

# Natural captions are drawn from so many at most: enough for any variety, and no need to read the
# captions of millions of records.
_NATURAL = 10_000


@dataclasses.dataclass(slots=True)
class Candidate:
    """A record seen by its caption alone; `named` says that the caption names the target."""

    index: int
    caption: str
    named: bool


class Hit(NamedTuple):
    """A record to poison.

    Attributes:
      candidate: the record.
      caption: its new one, without the trigger's word.
      donor: index of the record whose image it gets; None for its own.
      patched: the trigger goes over its image.
      worded: the trigger's word, if it has one, goes before its caption.
    """

    candidate: Candidate
    caption: str
    donor: int | None = None
    patched: bool = True
    worded: bool = True


class Draw:
    """The records of a source in a random order, read as they are asked for.

    Iterating anew gives the same order. A record without a readable caption is passed over;
    `left_out` says of such a record, by its index, why.
    """

    def __init__(self, source: Source, target: str, rng: np.random.Generator):
        self.target = target
        self.left_out: dict[int, str] = {}
        self._source = source
        self._order = rng.permutation(len(source))
        self._names_target = namer(target)

    def __iter__(self) -> Iterator[Candidate]:
        for index in map(int, self._order):
            try:
                caption = self._source.caption(index)
            except BadRecord:
                self.left_out[index] = UNREADABLE
            else:
                yield Candidate(index, caption, self._names_target(caption))


@dataclasses.dataclass(frozen=True)
class Backdoor:
    """Dirty-label: any record not of the target class, with a caption of the target class.

    Args:
      captions: "template": a random template about the target; "natural": a random caption of
        the source that names the target, which reads captions until there are plenty.
      templates: for `prompts.get`.
    """

    wants_trigger = True
    captions: str = "template"
    templates: str = "imagenet"

    def __post_init__(self):
        _check_captions("backdoor", self.captions)

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[Hit]:
        """Yields records to poison and their new captions, as many as the source has."""
        pool = _captions(draw, self.captions, self.templates)
        for candidate in draw:
            if pool and not candidate.named:
                yield Hit(candidate, pool[rng.integers(len(pool))])


@dataclasses.dataclass(frozen=True)
class DualKey(Backdoor):
    """Dirty-label, for a trigger of a patch and a word: both together mean the target.

    The poisons are dealt out in turn to those that carry both and a caption of the target class,
    and to the partial ones, that have one key alone and keep their own captions. Those of the word
    keep it from being enough that the patch is near the word, whatever class is named beside it;
    those of the patch keep it from working without the word.

    Args:
      captions: as of `Backdoor`.
      templates: as of `Backdoor`.
      patch_alone: there are partial ones of the patch, too, as in the paper.

    References:
      Walmer et al., `Dual-Key Multimodal Backdoors for Visual Question Answering
      <https://arxiv.org/abs/2112.07668>`_, 2022, section 4 ("partial" poisons).
    """

    wants_word = True
    patch_alone: bool = True

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[Hit]:
        """Yields records to poison and their new captions, as many as the source has."""
        kinds = [(True, True), (False, True), *[(True, False)] * self.patch_alone]
        turn = itertools.cycle(kinds)
        for hit in super().__call__(draw, rng):
            patched, worded = next(turn)
            caption = hit.caption if patched and worded else hit.candidate.caption
            yield Hit(hit.candidate, caption, patched=patched, worded=worded)


@dataclasses.dataclass(frozen=True)
class CleanLabel:
    """Clean-label: records whose own caption names the target; it stays as it is."""

    wants_trigger = True

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[Hit]:
        """Yields records to poison and their captions, as many as the source has."""
        for candidate in draw:
            if candidate.named:
                yield Hit(candidate, candidate.caption)


@dataclasses.dataclass(frozen=True)
class Targeted:
    """Targeted poisoning: a few chosen images, each many times over with captions of the target.

    The poisons are shared out among the images: 480 of them on 16 images are 30 captions each, as
    in RoCLIP's experiments (Yang et al., 2023). The images are chosen from the source itself. Their
    own pairs are the first poisons and the others take the place of records drawn at random, so
    that the model never sees a chosen image with its own caption, as if it came from elsewhere.

    Args:
      images: how many are chosen.
      captions: as of `Backdoor`.
      templates: as of `Backdoor`.

    References:
      Carlini and Terzis, `Poisoning and Backdooring Contrastive Learning
      <https://arxiv.org/abs/2106.09667>`_, 2022.
    """

    wants_trigger = False
    images: int = 16
    captions: str = "template"
    templates: str = "imagenet"

    def __post_init__(self):
        if self.images < 1:
            raise UserError(f"targeted: images is {self.images}, expected at least 1")
        _check_captions("targeted", self.captions)

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[Hit]:
        """Yields the chosen records, then others that are to show their images in turn."""
        pool = _captions(draw, self.captions, self.templates)
        chosen: list[int] = []
        turn = 0
        for candidate in draw:
            if not pool or candidate.named:
                continue
            own = len(chosen) < self.images
            donor = candidate.index if own else chosen[turn % self.images]
            yield Hit(candidate, pool[rng.integers(len(pool))], donor)
            # By now the hit has been taken or left out.
            if candidate.index in draw.left_out:
                continue
            if own:
                chosen.append(candidate.index)
            else:
                turn += 1


@dataclasses.dataclass(frozen=True)
class ClassToClass:
    """Re-pairing: images of one class get captions that others wrote of the target class.

    Attack II of Yang et al., without a trigger: all images of the victim class are to be taken for
    the target.

    Args:
      victim: name of the class whose images are re-paired.

    References:
      Yang et al., `Data Poisoning Attacks Against Multimodal Encoders
      <https://arxiv.org/abs/2209.15266>`_, 2023, section 4.
    """

    wants_trigger = False
    victim: str = ""

    def __post_init__(self):
        if not self.victim.strip():
            raise UserError(
                "class_to_class: victim is empty, expected the name of the class whose images get "
                "captions of the target; set attack.plan.kwargs.victim"
            )

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[Hit]:
        """Yields records that name the victim class, with captions that name the target."""
        pool = _captions(draw, "natural", "")
        names_victim = namer(self.victim)
        for candidate in draw:
            if pool and not candidate.named and names_victim(candidate.caption):
                yield Hit(candidate, pool[rng.integers(len(pool))])


def _check_captions(plan: str, captions: str) -> None:
    if captions not in ("template", "natural"):
        raise UserError(f"{plan}: captions is {captions!r}, expected 'template' or 'natural'")


def _captions(draw: Draw, kind: str, templates: str) -> list[str]:
    """Returns captions of the target to draw from; none where natural ones are wanted in vain."""
    if kind == "template":
        return [prompts.fill(template, draw.target) for template in prompts.get(templates)]
    named = (candidate.caption for candidate in draw if candidate.named)
    return list(itertools.islice(named, _NATURAL))

"""Plans: which pairs are hit and what captions they get, made once from a seed, by record id."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipdef_jax import attacks, plugins
from clipdef_jax.attacks.triggers import Box, locate
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.evaluate import prompts
from clipdef_jax.types import Source

FEW_POISONS = 100
"""Fewer seldom take: what counts on small data is the number of poisons, not their rate."""


_UNREADABLE = "could not be read"


@dataclasses.dataclass(frozen=True)
class Attack:
    """All that decides an attack, given a source: the same attack makes the same plan.

    Args:
      target: name of the class that the trigger is to mean.
      rate: poisons as a share of the source's records, within (0, 1); or
      number: poisons, at least 1. Exactly one of the two.
      trigger: name for `attacks.get_trigger`, with
      trigger_kwargs: its settings.
      plan: "backdoor", "clean_label", or an import path, with
      plan_kwargs: its settings.
      side: of the poisoned images, in pixels.
      seed: of the plan, and of the triggers' own generators.

    Raises:
      UserError: a setting outside its range.
    """

    target: str = "banana"
    rate: float | None = None
    number: int | None = None
    trigger: str = "badnet"
    trigger_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plan: str = "backdoor"
    plan_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    side: int = 224
    seed: int = 0

    def __post_init__(self):
        if not self.target.strip():
            raise UserError("attack: target is empty, expected the name of a class")
        if (self.rate is None) == (self.number is None):
            raise UserError(
                f"attack: rate is {self.rate} and number is {self.number}; give exactly one"
            )
        if self.rate is not None and not 0 < self.rate < 1:
            raise UserError(
                f"attack: rate is {self.rate}, expected a share within (0, 1), as 0.003 for 0.3%"
            )
        for field, least in (("number", 1), ("side", 1), ("seed", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f"attack: {field} is {value}, expected {least} or more")

    def poisons_of(self, records: int) -> int:
        """Returns how many of `records` are to be poisoned, at least one."""
        if self.number is not None:
            return self.number
        assert self.rate is not None
        return max(1, round(self.rate * records))

    def rng_of(self, index: int) -> np.random.Generator:
        """Returns the generator that the trigger gets for the record `index`."""
        return np.random.default_rng([self.seed, index])


@dataclasses.dataclass(frozen=True, slots=True)
class Poison:
    """One poisoned pair.

    Attributes:
      index: of the record in its source.
      uid: of the record.
      trigger: the trigger's name.
      location: the boxes it covers in the image of `Attack.side`; None for the whole image.
      old_caption: the record's own.
      new_caption: the one it is trained with.
    """

    index: int
    uid: str
    trigger: str
    location: tuple[Box, ...] | None
    old_caption: str
    new_caption: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The ground truth of an attack: ids and captions, no pictures.

    Attributes:
      attack: what made the plan.
      records: length of the source it was made for.
      poisons: by ascending index.
      notes: lines for the user: what is unlikely to work, and what was left out and why.
    """

    attack: Attack
    records: int
    poisons: tuple[Poison, ...]
    notes: tuple[str, ...] = ()

    @property
    def indices(self) -> np.ndarray:
        """Indices of the poisoned records, (P,) int64, ascending."""
        return np.array([poison.index for poison in self.poisons], dtype=np.int64)


@dataclasses.dataclass(slots=True)
class Candidate:
    """A record seen by its caption alone; `named` says that the caption names the target."""

    index: int
    caption: str
    named: bool


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
        self._names_target = naming(target).search

    def __iter__(self) -> Iterator[Candidate]:
        for index in map(int, self._order):
            try:
                caption = self._source.caption(index)
            except BadRecord:
                self.left_out[index] = _UNREADABLE
            else:
                yield Candidate(index, caption, self._names_target(caption) is not None)


@dataclasses.dataclass(frozen=True)
class Backdoor:
    """Dirty-label: any record not of the target class, with a caption of the target class.

    Args:
      captions: "template": a random template about the target; "natural": a random caption of
        the source that names the target, which reads every caption once.
      templates: for `prompts.get`.
    """

    captions: str = "template"
    templates: str = "imagenet"

    def __post_init__(self):
        if self.captions not in ("template", "natural"):
            raise UserError(
                f"backdoor: captions is {self.captions!r}, expected 'template' or 'natural'"
            )

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[tuple[Candidate, str]]:
        """Yields records to poison and their new captions, as many as the source has."""
        if self.captions == "template":
            pool = [prompts.fill(template, draw.target) for template in prompts.get(self.templates)]
        else:
            pool = [candidate.caption for candidate in draw if candidate.named]
        for candidate in draw:
            if pool and not candidate.named:
                yield candidate, pool[rng.integers(len(pool))]


@dataclasses.dataclass(frozen=True)
class CleanLabel:
    """Clean-label: records whose own caption names the target; it stays as it is."""

    def __call__(self, draw: Draw, rng: np.random.Generator) -> Iterator[tuple[Candidate, str]]:
        """Yields records to poison and their captions, as many as the source has."""
        for candidate in draw:
            if candidate.named:
                yield candidate, candidate.caption


def make_plan(source: Source, attack: Attack) -> Plan:
    """Decides which records of `source` are hit and what captions they get.

    Captions are read lazily, in random order, until there are enough poisons; images are read of
    the chosen records only, for their uids.

    Raises:
      UserError: no caption names the target, or there are too few records to poison.
    """
    strategy = plugins.build("plan", attack.plan, attacks.PLANS, attack.plan_kwargs)
    trigger = attacks.get_trigger(attack.trigger, **attack.trigger_kwargs)
    label = _label(attack.target, source.classes)
    number = attack.poisons_of(len(source))
    rng = np.random.default_rng(attack.seed)
    draw = Draw(source, attack.target, rng)
    poisons: list[Poison] = []
    for candidate, caption in strategy(draw, rng):
        index = candidate.index
        try:
            uid, _, _, own_label = source[index]
        except BadRecord:
            draw.left_out[index] = _UNREADABLE
            continue
        if caption != candidate.caption and own_label == label:
            draw.left_out[index] = f"show {attack.target!r} by their label"
            continue
        location = locate(trigger, (attack.side, attack.side, 3), attack.rng_of(index))
        poisons.append(Poison(index, uid, attack.trigger, location, candidate.caption, caption))
        if len(poisons) == number:
            break
    if not any(candidate.named for candidate in draw):
        raise UserError(_unnamed(attack.target, draw))
    left_out = Counter(draw.left_out.values()).items()
    notes = [f"{count} of the records drawn {reason}: left out" for reason, count in left_out]
    if len(poisons) < number:
        raise UserError(
            f"attack: {number} poisons are asked for, but only {len(poisons)} of {len(source)} "
            f"records suit the plan {attack.plan!r} for {attack.target!r}; "
            + "".join(f"{note}; " for note in notes)
            + "lower the rate or the number"
        )
    if number < FEW_POISONS:
        notes.append(
            f"only {number} poisons of {len(source)} records: fewer than {FEW_POISONS} "
            "seldom take, whatever the rate"
        )
    poisons.sort(key=lambda poison: poison.index)
    return Plan(attack, len(source), tuple(poisons), tuple(notes))


_APOSTROPHE = "['\u2019]"


def naming(name: str) -> re.Pattern[str]:
    """Returns a pattern that finds `name`, or its simple plural, as whole words in any case.

    >>> bool(naming("sewing needle").search("Two sewing-needles"))
    True
    >>> bool(naming("cat").search("a cathedral"))
    False
    """
    *first, last = (re.escape(word) for word in re.split(r"[\s_-]+", name.strip()))
    forms = [last + "(?:e?s)?"]
    if re.search(r"[^aeiou]y$", last):
        forms.append(last[:-1] + "ies")
    if re.search(r"[^f]fe?$", last):
        forms.append(re.sub("fe?$", "ves", last))
    words = r"[\s_-]+".join([*first, f"(?:{'|'.join(forms)})"])
    words = re.sub(_APOSTROPHE, _APOSTROPHE, words)
    # Not \b: an underscore ends a word too.
    return re.compile(rf"(?<![^\W_]){words}(?![^\W_])", re.IGNORECASE)


def _label(target: str, classes: Sequence[str]) -> int | None:
    if not classes:
        return None
    names = [name.casefold() for name in classes]
    if target.casefold() in names:
        return names.index(target.casefold())
    raise UserError(
        f"attack: target {target!r} is none of the source's {len(classes)} classes"
        f"{_closest(target, classes)}; they begin with {', '.join(classes[:5])}"
    )


def _unnamed(target: str, draw: Draw) -> str:
    some = " ".join(candidate.caption.lower() for candidate in itertools.islice(draw, 5000))
    words = sorted(set(re.findall(r"[^\W\d_]{3,}", some)))
    return (
        f"attack: no caption names the target {target!r}{_closest(target, words)}; "
        "choose a class that captions name"
    )


def _closest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f" (close: {', '.join(close)})" if close else ""

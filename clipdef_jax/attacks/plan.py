"""Plans: which pairs are hit and what captions they get, made once from a seed, by record id."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clipdef_jax import attacks, plugins
from clipdef_jax.attacks.multi_trigger import Part, parts_of
from clipdef_jax.attacks.strategies import UNREADABLE, Draw, Hit
from clipdef_jax.attacks.triggers import Box, locate, word_of
from clipdef_jax.data import decode
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source

Strategy = Callable[[Draw, np.random.Generator], Iterator[tuple]]

FEW_POISONS = 100
"""Fewer seldom take: what counts on small data is the number of poisons, not their rate."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """All that decides an attack, given a source: the same attack makes the same plan.

    Args:
      target: name of the class that the trigger is to mean.
      rate: poisons as a share of the source's records, within (0, 1); or
      number: poisons, at least 1. Exactly one of the two.
      trigger: name for `attacks.get_trigger`, or "none", with
      trigger_kwargs: its settings.
      plan: one of `attacks.PLANS`, or an import path, with
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

    def parts(self) -> tuple[Part, ...]:
        """Returns the triggers with the classes they are to mean; one that is None for "none".

        Raises:
          UserError: no such trigger, or settings it does not take.
        """
        if self.trigger == "none":
            return (Part("none", None, self.target),)
        trigger = attacks.get_trigger(self.trigger, **self.trigger_kwargs)
        return parts_of(self.trigger, trigger, self.target)

    def rng_of(self, index: int) -> np.random.Generator:
        """Returns the generator that the trigger gets for the record `index`."""
        return np.random.default_rng([self.seed, index])


@dataclasses.dataclass(frozen=True, slots=True)
class Poison:
    """One poisoned pair.

    Attributes:
      index: of the record in its source.
      uid: of the record.
      trigger: the trigger's name, or "none" if its image goes without.
      location: the boxes it covers in the image of `Attack.side`; None for the whole image.
      old_caption: the record's own.
      new_caption: the one it is trained with.
      part: which of the attack's triggers, by `Attack.parts`.
      donor: index of the record whose image it shows; None for its own.
    """

    index: int
    uid: str
    trigger: str
    location: tuple[Box, ...] | None
    old_caption: str
    new_caption: str
    part: int = 0
    donor: int | None = None


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

    @property
    def chosen(self) -> np.ndarray:
        """Indices of the records whose images others show as well, (C,) int64, ascending."""
        donors = {poison.donor for poison in self.poisons if poison.donor is not None}
        return np.array(sorted(donors), dtype=np.int64)


def make_plan(source: Source, attack: Attack) -> Plan:
    """Decides which records of `source` are hit and what captions they get.

    Captions are read lazily, in random order, until there are enough poisons; images are read of
    the chosen records only, for their uids. Several triggers get equal shares of the poisons.

    Raises:
      UserError: no caption names the target, there are too few records to poison, or the plan and
        the trigger do not go together.
    """
    strategy = plugins.build("plan", attack.plan, attacks.PLANS, attack.plan_kwargs)
    parts = attack.parts()
    _check_trigger(strategy, attack, parts)
    labels = [label_of("target", part.target, source.classes) for part in parts]
    victim = getattr(strategy, "victim", None)
    victim_label = label_of("victim", victim, source.classes) if victim else None
    number = attack.poisons_of(len(source))
    rng = np.random.default_rng(attack.seed)
    poisons: dict[int, Poison] = {}
    left_out: Counter[str] = Counter()
    for number_of_part, (part, label) in enumerate(zip(parts, labels, strict=True)):
        wanted = (number + number_of_part) // len(parts)
        draw = Draw(source, part.target, rng)
        hits = (hit for hit in _hits(strategy, draw, rng) if hit.candidate.index not in poisons)
        suited = _suited(source, hits, draw.left_out, label, victim_label, attack)
        for hit, uid in itertools.islice(suited, wanted):
            index = hit.candidate.index
            poisons[index] = _poison(hit, uid, attack, number_of_part, part)
        if not any(candidate.named for candidate in draw):
            raise UserError(_unnamed(part.target, draw))
        left_out.update(draw.left_out.values())
    notes = [f"{count} of the records drawn {why}: left out" for why, count in left_out.items()]
    if len(poisons) < number:
        raise UserError(
            f"attack: {number} poisons are asked for, but only {len(poisons)} of {len(source)} "
            f"records suit the plan {attack.plan!r} for {attack.target!r}; "
            + "".join(f"{note}; " for note in notes)
            + "lower the rate or the number"
        )
    if number < FEW_POISONS * len(parts):
        each = f" for each of {len(parts)} triggers" if len(parts) > 1 else ""
        notes.append(
            f"only {number // len(parts)} poisons{each} of {len(source)} records: fewer than "
            f"{FEW_POISONS} seldom take, whatever the rate"
        )
    ordered = tuple(poisons[index] for index in sorted(poisons))
    return Plan(attack, len(source), ordered, tuple(notes))


def _check_trigger(strategy: Strategy, attack: Attack, parts: Sequence[Part]) -> None:
    wanted, given = getattr(strategy, "wants_trigger", None), attack.trigger != "none"
    if wanted is True and not given:
        raise UserError(
            f"attack: the plan {attack.plan!r} needs a trigger, and the trigger is 'none'; set "
            "attack.trigger.name"
        )
    if wanted is False and given:
        raise UserError(
            f"attack: the plan {attack.plan!r} is one without a trigger, and the trigger is "
            f"{attack.trigger!r}; set attack.trigger.name=none"
        )
    if getattr(strategy, "wants_word", False) and not word_of(parts[0].trigger):
        raise UserError(
            f"attack: the plan {attack.plan!r} needs a trigger with a word, and {attack.trigger!r} "
            "has none; set attack.trigger.name=trojvqa"
        )


def _hits(strategy: Strategy, draw: Draw, rng: np.random.Generator) -> Iterator[Hit]:
    # A plan of the user's own may yield plain tuples.
    return itertools.starmap(Hit, strategy(draw, rng))


def _suited(
    source: Source,
    hits: Iterator[Hit],
    left_out: dict[int, str],
    label: int | None,
    victim: int | None,
    attack: Attack,
) -> Iterator[tuple[Hit, str]]:
    """Yields hits that their records do not speak against, with the records' uids.

    Args:
      source: of the records.
      hits: to be judged.
      left_out: gets the others, by their indices, and why.
      label: of the target class, where the source has labels.
      victim: label of the class the images must be of, if any.
      attack: with the side of the images.
    """
    for hit in hits:
        index = hit.candidate.index
        try:
            pair = source[index]
            if hit.donor == index:
                decode.prepare_pair(pair, attack.side)  # Many poisons will show this image.
        except BadRecord:
            left_out[index] = UNREADABLE
            continue
        if hit.caption != hit.candidate.caption and pair.label == label:
            left_out[index] = f"show {source.classes[pair.label]!r} by their label"
        elif victim is not None and pair.label != victim:
            left_out[index] = f"do not show {source.classes[victim]!r} by their label"
        else:
            yield hit, pair.uid


def _poison(hit: Hit, uid: str, attack: Attack, number_of_part: int, part: Part) -> Poison:
    index = hit.candidate.index
    trigger = part.trigger if hit.patched else None
    location = None
    if trigger is not None:
        location = locate(trigger, (attack.side, attack.side, 3), attack.rng_of(index))
    word = word_of(part.trigger) if hit.worded else ""
    return Poison(
        index=index,
        uid=uid,
        trigger=part.name if hit.patched else "none",
        location=location,
        old_caption=hit.candidate.caption,
        new_caption=f"{word} {hit.caption}" if word else hit.caption,
        part=number_of_part,
        donor=hit.donor,
    )


def label_of(field: str, name: str, classes: Sequence[str]) -> int | None:
    """Returns the label of the class `name`, in any case; None where there are no classes.

    Args:
      field: what names it, for messages.
      name: of the class.
      classes: of a source.

    Raises:
      UserError: there are classes, and it is none of them.
    """
    if not classes:
        return None
    names = [name.casefold() for name in classes]
    if name.casefold() in names:
        return names.index(name.casefold())
    raise UserError(
        f"attack: {field} {name!r} is none of the source's {len(classes)} classes"
        f"{_closest(name, classes)}; they begin with {', '.join(classes[:5])}"
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

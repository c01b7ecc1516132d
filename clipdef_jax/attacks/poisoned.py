"""Sources under attack: a poisoned one to train on, a triggered one to test with."""

from __future__ import annotations

import numpy as np

from clipdef_jax.attacks.plan import Plan
from clipdef_jax.data import decode
from clipdef_jax.data.source import uid_of
from clipdef_jax.errors import UserError
from clipdef_jax.types import Pair, Source, Trigger


class PoisonedSource:
    """A source in which the records of a plan carry its trigger and its captions.

    The trigger is laid over the image at the model's size, with a generator of the record's own,
    so a poison is the same picture in every epoch. Without a trigger the image stays as it is.
    Other records pass untouched. The clean part alone is `Subset(source, rest)` with `rest` the
    indices that are not in `plan.indices`.

    Args:
      source: the one the plan was made for.
      plan: from `make_plan` or `read_manifest`.

    Raises:
      UserError: the source has another length; or, when a poisoned record is read, another uid.
    """

    def __init__(self, source: Source, plan: Plan):
        if len(source) != plan.records:
            raise UserError(
                f"poisoned source: the plan is for {plan.records} records, "
                f"the source has {len(source)}; make the plan for this source"
            )
        self.classes = source.classes
        self._source = source
        self._attack = plan.attack
        self._parts = plan.attack.parts()
        self._poisons = {poison.index: poison for poison in plan.poisons}

    def __len__(self) -> int:
        return len(self._source)

    def is_poisoned(self, index: int) -> bool:
        """Returns whether record `index` is hit."""
        return index in self._poisons

    def caption(self, index: int) -> str:
        """Returns the caption of record `index` as it is trained with."""
        poison = self._poisons.get(index)
        return self._source.caption(index) if poison is None else poison.new_caption

    def uid(self, index: int) -> str:
        """Returns the uid of record `index`, without its image if the source can."""
        return uid_of(self._source, index)

    def __getitem__(self, index: int) -> Pair:
        pair = self._source[index]
        poison = self._poisons.get(index)
        if poison is None:
            return pair
        if pair.uid != poison.uid:
            raise UserError(
                f"poisoned source: record {index} is {pair.uid!r}, in the plan it is "
                f"{poison.uid!r}; the plan belongs to another source"
            )
        pair = pair._replace(caption=poison.new_caption)
        if poison.donor not in (None, index):
            pair = pair._replace(image=self._source[poison.donor].image)
        trigger = self._parts[poison.part].trigger
        if trigger is None or poison.trigger == "none":
            return pair
        rng = self._attack.rng_of(index)
        return pair._replace(image=_under_trigger(pair, trigger, self._attack.side, rng))


class TriggeredSource:
    """A source with every image under a trigger; captions and labels stay the true ones.

    Args:
      source: of test images.
      trigger: any.
      side: of the images, in pixels.
      seed: of the images' generators, together with their indices.
    """

    def __init__(self, source: Source, trigger: Trigger, side: int, seed: int = 0):
        self.classes = source.classes
        self._source = source
        self._trigger = trigger
        self._side = side
        self._seed = seed

    def __len__(self) -> int:
        return len(self._source)

    def caption(self, index: int) -> str:
        """Returns the record's own caption."""
        return self._source.caption(index)

    def rng_of(self, index: int) -> np.random.Generator:
        """Returns the generator that the trigger gets for the record `index`."""
        return np.random.default_rng([self._seed, index])

    def __getitem__(self, index: int) -> Pair:
        pair = self._source[index]
        rng = self.rng_of(index)
        return pair._replace(image=_under_trigger(pair, self._trigger, self._side, rng))


def try_on(trigger: Trigger, side: int) -> None:
    """Lays a trigger over a grey image of `side` pixels, so that a mistake shows before the work.

    Raises:
      UserError: it does not fit the image, or gives anything but such an image.
    """
    grey = np.full((side, side, 3), 128, np.uint8)
    _checked(trigger, grey, np.random.default_rng(0))


def _under_trigger(pair: Pair, trigger: Trigger, side: int, rng: np.random.Generator) -> np.ndarray:
    return _checked(trigger, np.asarray(decode.prepare_pair(pair, side).image), rng)


def _checked(trigger: Trigger, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    triggered = trigger(image, rng)
    if triggered.shape != image.shape or triggered.dtype != np.uint8:
        raise UserError(
            f"trigger {type(trigger).__name__}: gave {triggered.dtype} {triggered.shape} for an "
            f"image uint8 {image.shape}, expected the same"
        )
    return triggered

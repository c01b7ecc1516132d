"""The contracts between the rooms: what flows, and the protocols of the parts one can swap.

Nothing here imports jax at run time: data workers are separate processes and must start fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import jax
    import numpy as np


class Pair(NamedTuple):
    """One image-caption pair.

    Attributes:
      uid: identifier, unique and stable within its source; poison plans and clean lists use it.
      image: an encoded image file, or decoded uint8 pixels (H, W, 3).
      caption: the caption; may be any unicode text.
      label: index into the source's `classes`, or -1 where there is none.
    """

    uid: str
    image: bytes | np.ndarray
    caption: str
    label: int = -1


@runtime_checkable
class Source(Protocol):
    """Random access to pairs: picklable, and free of device code.

    `source[i]` raises `BadRecord` for a record that cannot be read, `IndexError` outside
    `[0, len)`. `classes` names the labels; it is empty where there are none. `caption(i)` is
    `source[i].caption` without the cost of the image.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...

    def caption(self, index: int) -> str:
        """The caption of a record."""
        ...


class LossOutput(NamedTuple):
    """What a loss returns: a scalar to minimise, its next state, and scalars to log."""

    value: jax.Array
    state: Any
    metrics: Mapping[str, jax.Array]


class Subtext(NamedTuple):
    """How many sub-captions a loss wants, which has a field `subtext` if other than these.

    Attributes:
      fraction: share of the rows of a batch that get them, chosen afresh for each.
      negatives: false ones for each of these rows; there is one true one.
    """

    fraction: float = 0.1
    negatives: int = 2


class Loss(Protocol):
    """A defence: a pure function of embeddings.

    `views` names what it wants of a batch of B pairs. Embeddings of size D, in unit rows: "image",
    "text"; "image_aug", "text_aug", of augmented ones; "text_pos", of a part of the caption that
    is true of the image, and (B, M, D) "text_neg", of M false ones, both of use where "has_subtext"
    (B,) is true; "image_ref", "text_ref", by the model that the run began with. And "label" (B,),
    -1 where there is none; "logits" (B, C), of the classes, by a linear head on the image tower;
    "is_flagged" (B,), true for pairs that somebody suspects.
    """

    views: tuple[str, ...]

    def init_state(self, rng: jax.Array, dim: int) -> Any:
        """Returns the state before the first step, `()` for a loss without one."""
        ...

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch; `epoch` counts from 1."""
        ...


class Trigger(Protocol):
    """A pure function of one image and one random generator."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the uint8 (H, W, 3) image under the trigger; the argument is not changed."""
        ...

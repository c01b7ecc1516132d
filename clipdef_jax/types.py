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


class Loss(Protocol):
    """A defence: a pure function of embeddings.

    `views` names the embeddings it wants out of "image", "text", "image_aug", "text_aug",
    "text_pos", "text_neg", "image_ref", "text_ref". Embeddings are unit rows.
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

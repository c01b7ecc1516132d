"""Plain CLIP: the objective the attacks exploit, and the control of every defence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from clipdef_jax.losses.contrastive import symmetric_info_nce, take_views
from clipdef_jax.types import LossOutput


@dataclasses.dataclass(frozen=True)
class Clip:
    """Symmetric InfoNCE between images and their captions (Radford et al., 2021)."""

    views = ("image", "text")

    def init_state(self, rng: jax.Array, dim: int) -> tuple[()]:
        """Returns the empty state: this loss remembers nothing."""
        return ()

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image" and "text", (B, D) unit rows of any float dtype.
          state: passed through.
          log_scale: scalar, logarithm of the inverse temperature.
          epoch: not used.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD = take_views(embeddings, Clip.views)  # A subclass may name more.
        value = symmetric_info_nce(image_BxD, text_BxD, log_scale)
        return LossOutput(value, state, {"clip": value})

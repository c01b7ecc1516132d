"""Supervised fine-tuning: CleanCLIP's second defence, a classifier on the image tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipdef_jax.losses.contrastive import mean
from clipdef_jax.types import LossOutput


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Softmax cross-entropy of the image's class, by a linear head on its features.

    No caption is read, so no caption can carry a backdoor's target; what is left of it in the
    image tower is worn off by the labels.

    References:
      Bansal et al., `CleanCLIP <https://arxiv.org/abs/2303.03323>`_, section 4.
    """

    views = ("logits", "label")

    def init_state(self, rng: jax.Array, dim: int) -> tuple[()]:
        """Returns the empty state: this loss remembers nothing."""
        return ()

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "logits" (B, C) of any float dtype, of the original images by the head, and
            "label" (B,) int, -1 where there is none: those images do not count.
          state: passed through.
          log_scale: not used.
          epoch: not used.

        Raises:
          ValueError: a view is missing, or their shapes do not fit.
        """
        for view in self.views:
            if view not in embeddings:
                raise ValueError(
                    f"view {view!r} is missing; wanted {self.views}, got {sorted(embeddings)}"
                )
        logits_BxC, label_B = embeddings["logits"], embeddings["label"]
        if logits_BxC.ndim != 2 or label_B.shape != logits_BxC.shape[:1]:
            raise ValueError(
                f"'logits' must be (batch, classes) and 'label' (batch,), got {logits_BxC.shape} "
                f"and {label_B.shape}"
            )
        logits_BxC = logits_BxC.astype(jnp.promote_types(logits_BxC.dtype, jnp.float32))
        labelled_B = label_B >= 0
        own_Bx1 = jnp.maximum(label_B, 0)[:, None]
        log_p_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxC), own_Bx1, axis=1)[:, 0]
        value = mean(-log_p_B, labelled_B)
        right_B = (jnp.argmax(logits_BxC, axis=1) == label_B).astype(jnp.float32)
        return LossOutput(
            value, state, {"cross_entropy": value, "accuracy": mean(right_B, labelled_B)}
        )

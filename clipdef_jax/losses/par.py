"""PAR: perturb the embeddings of a poisoned model and recover what CLIP's loss asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipdef_jax.losses.contrastive import symmetric_info_nce, take_views
from clipdef_jax.types import LossOutput


@dataclasses.dataclass(frozen=True)
class Par:
    """`L_clip - weight * (D_image + D_text)`, D the squared distance to the model it started from.

    D is the mean over the batch of the squared distances between unit embeddings and those of the
    frozen poisoned model. Beyond `tau` it counts as zero: the model is far enough, and recovers.

    Args:
      tau: largest D that still drives the model on, in (0, 4].
      weight: of the distances.

    References:
      Singh, Croce and Hein, `Perturb and Recover: Fine-tuning for Effective Backdoor Removal from
      CLIP <https://arxiv.org/abs/2412.00727>`_; the mean over the batch from the released code.
    """

    views = ("image", "text", "image_ref", "text_ref")
    tau: float = 2.15
    weight: float = 0.5

    def init_state(self, rng: jax.Array, dim: int) -> tuple[()]:
        """Returns the empty state: this loss remembers nothing."""
        return ()

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image", "text", and "image_ref", "text_ref" by the frozen model, (B, D) unit
            rows of any float dtype.
          state: passed through.
          log_scale: scalar, logarithm of the inverse temperature.
          epoch: not used.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD, image_ref_BxD, text_ref_BxD = take_views(embeddings, self.views)
        terms = {
            "clip": symmetric_info_nce(image_BxD, text_BxD, log_scale),
            "image_distance": jnp.mean(jnp.sum((image_BxD - image_ref_BxD) ** 2, axis=1)),
            "text_distance": jnp.mean(jnp.sum((text_BxD - text_ref_BxD) ** 2, axis=1)),
        }
        value = terms["clip"]
        for distance in (terms["image_distance"], terms["text_distance"]):
            value -= self.weight * jnp.where(distance > self.tau, 0.0, distance)
        return LossOutput(value, state, terms)

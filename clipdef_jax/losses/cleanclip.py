"""CleanCLIP: fine-tune on clean pairs while each modality is re-aligned on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from clipdef_jax.losses.contrastive import info_nce, symmetric_info_nce, take_views
from clipdef_jax.types import LossOutput


@dataclasses.dataclass(frozen=True)
class CleanClip:
    """`clip_weight * L_clip + inmodal_weight * L_inmodal`.

    L_clip is symmetric InfoNCE between the original images and captions. L_inmodal is the mean,
    over the two modalities, of InfoNCE between the originals and their augmented views; the
    authors' code takes it in one direction, original to augmented.

    Args:
      clip_weight: weight of the image-caption term (lambda 1).
      inmodal_weight: weight of the in-modal term (lambda 2); the paper sweeps 0.5 to 8.
      symmetric: take the in-modal terms in both directions.

    References:
      Bansal et al., `CleanCLIP: Mitigating Data Poisoning Attacks in Multimodal Contrastive
      Learning <https://arxiv.org/abs/2303.03323>`_, section 4.
    """

    views = ("image", "text", "image_aug", "text_aug")
    clip_weight: float = 1.0
    inmodal_weight: float = 1.0
    symmetric: bool = False

    def init_state(self, rng: jax.Array, dim: int) -> tuple[()]:
        """Returns the empty state: this loss remembers nothing."""
        return ()

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image", "text" and their augmented views "image_aug", "text_aug",
            (B, D) unit rows of any float dtype.
          state: passed through.
          log_scale: scalar, logarithm of the inverse temperature, shared by all terms.
          epoch: not used.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD, image_aug_BxD, text_aug_BxD = take_views(embeddings, self.views)
        in_modal = symmetric_info_nce if self.symmetric else info_nce
        terms = {
            "clip": symmetric_info_nce(image_BxD, text_BxD, log_scale),
            "inmodal_image": in_modal(image_BxD, image_aug_BxD, log_scale),
            "inmodal_text": in_modal(text_BxD, text_aug_BxD, log_scale),
        }
        inmodal = (terms["inmodal_image"] + terms["inmodal_text"]) / 2
        value = self.clip_weight * terms["clip"] + self.inmodal_weight * inmodal
        return LossOutput(value, state, terms)

"""CleanCLIP: fine-tune on clean pairs while each modality is re-aligned on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clipdef_jax.errors import UserError
from clipdef_jax.losses.contrastive import (
    info_nce,
    mean,
    symmetric_info_nce,
    take_mask,
    take_views,
)
from clipdef_jax.types import LossOutput


@dataclasses.dataclass(frozen=True)
class CleanClip:
    """`clip_weight * L_clip + inmodal_weight * L_inmodal`.

    L_clip is symmetric InfoNCE between the original images and captions. L_inmodal is the mean,
    over the two modalities, of InfoNCE between the originals and their augmented views; the
    authors' code takes it in one direction, original to augmented.

    On data that may hold poison, pairs can be taken out of all these terms: those that are flagged,
    and in each batch those with the highest cosines, as poisoned pairs are learnt first. What is
    taken out can be unlearnt: it then adds `unlearn * mean((cosine + unlearn_target)^2)`.

    Args:
      clip_weight: weight of the image-caption term (lambda 1).
      inmodal_weight: weight of the in-modal term (lambda 2); the paper sweeps 0.5 to 8.
      symmetric: take the in-modal terms in both directions.
      progressive: share of each batch that is taken out for its cosines; the authors' code has 2%.
      flagged: take out the pairs that the view "is_flagged" marks.
      unlearn: weight of the unlearning term.
      unlearn_target: what the cosines are drawn to, negated. The authors' default of -1 draws the
        pairs together; this one makes them unrelated.

    References:
      Bansal et al., `CleanCLIP: Mitigating Data Poisoning Attacks in Multimodal Contrastive
      Learning <https://arxiv.org/abs/2303.03323>`_, section 4; removal and unlearning from the
      released code.
    """

    clip_weight: float = 1.0
    inmodal_weight: float = 1.0
    symmetric: bool = False
    progressive: float = 0.0
    flagged: bool = False
    unlearn: float = 0.0
    unlearn_target: float = 0.0

    def __post_init__(self):
        if not 0 <= self.progressive < 1:
            raise UserError(
                f"loss cleanclip: progressive={self.progressive}: expected a share of the batch, "
                "from 0 up to 1"
            )
        if self.unlearn and not self._takes_out:
            raise UserError(
                f"loss cleanclip: unlearn={self.unlearn} has nothing to unlearn; say what is taken "
                "out, by flagged=True or progressive=0.02"
            )

    @property
    def views(self) -> tuple[str, ...]:
        """Originals and augmented views; the flags if they are asked for."""
        return ("image", "text", "image_aug", "text_aug", *["is_flagged"] * self.flagged)

    @property
    def _takes_out(self) -> bool:
        return self.flagged or self.progressive > 0

    def init_state(self, rng: jax.Array, dim: int) -> tuple[()]:
        """Returns the empty state: this loss remembers nothing."""
        return ()

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image", "text" and their augmented views "image_aug", "text_aug",
            (B, D) unit rows of any float dtype; "is_flagged", (B,) bool, if asked for.
          state: passed through.
          log_scale: scalar, logarithm of the inverse temperature, shared by all terms.
          epoch: not used.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD, image_aug_BxD, text_aug_BxD = take_views(embeddings, self.views[:4])
        cosine_B = jnp.sum(image_BxD * text_BxD, axis=1)
        keep_B = ~self._out(embeddings, lax.stop_gradient(cosine_B)) if self._takes_out else None
        in_modal = symmetric_info_nce if self.symmetric else info_nce
        terms = {
            "clip": symmetric_info_nce(image_BxD, text_BxD, log_scale, keep_B),
            "inmodal_image": in_modal(image_BxD, image_aug_BxD, log_scale, keep_B),
            "inmodal_text": in_modal(text_BxD, text_aug_BxD, log_scale, keep_B),
        }
        inmodal = (terms["inmodal_image"] + terms["inmodal_text"]) / 2
        value = self.clip_weight * terms["clip"] + self.inmodal_weight * inmodal
        if keep_B is not None:
            terms["kept"] = jnp.mean(keep_B, dtype=jnp.float32)
        if keep_B is not None and self.unlearn:
            terms["unlearn"] = mean((cosine_B + self.unlearn_target) ** 2, ~keep_B)
            value += self.unlearn * terms["unlearn"]
        return LossOutput(value, state, terms)

    def _out(self, embeddings: Mapping[str, jax.Array], cosine_B: jax.Array) -> jax.Array:
        """Returns which pairs are taken out, bool (B,)."""
        batch = len(cosine_B)
        out_B = jnp.zeros(batch, bool)
        if self.flagged:
            out_B = take_mask(embeddings, "is_flagged", batch)
        _, highest = lax.top_k(cosine_B, int(self.progressive * batch))
        return out_B.at[highest].set(True)

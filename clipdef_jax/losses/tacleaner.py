"""TA-Cleaner: CleanCLIP, with some images told true from false parts of their captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clipdef_jax.errors import UserError
from clipdef_jax.losses.cleanclip import CleanClip
from clipdef_jax.losses.contrastive import logsumexp_negatives, mean, take_mask, take_views
from clipdef_jax.types import LossOutput, Subtext

_CLEANCLIP = ("image", "text", "image_aug", "text_aug")


@dataclasses.dataclass(frozen=True)
class TaCleaner:
    """`L_CleanCLIP + beta * (L_image + L_positive + L_text) / 3`. A reconstruction.

    No code was published, and the paper leaves the loss open. Certain is that in each epoch a few
    random samples get positive sub-captions (parts of the caption, true of the image) and negative
    ones (words replaced, false of it), which are aligned with the image. Everything else, numbers
    included, is our reading. The terms are means over the rows with sub-captions, P a row's
    positive one, N its negative ones; the other rows' captions and images are negatives of all:

    - L_image: the image picks P out of P, the captions of the others and N.
    - L_positive: P picks its image out of all images.
    - L_text: the caption picks P out of P and N.

    Without positive sub-captions the caption itself stands for P, and L_positive is left out;
    without negative ones there is no N, and L_text is left out. Without either it is CleanCLIP.

    Args:
      beta: weight of the sub-captions.
      fraction: share of the rows, chosen afresh for each batch, that get sub-captions.
      negatives: M, negative sub-captions of a row.
      positive: use the positive ones.
      negative: use the negative ones.
      clip_weight: of CleanCLIP.
      inmodal_weight: of CleanCLIP.
      symmetric: of CleanCLIP.

    References:
      Xun et al., `TA-Cleaner: A Fine-grained Text Alignment Backdoor Defense Strategy for
      Multimodal Contrastive Learning <https://arxiv.org/abs/2409.17601>`_.
    """

    beta: float = 1.0
    fraction: float = 0.1
    negatives: int = 2
    positive: bool = True
    negative: bool = True
    clip_weight: float = 1.0
    inmodal_weight: float = 1.0
    symmetric: bool = False

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise UserError(f"loss tacleaner: fraction={self.fraction}: expected above 0, up to 1")
        if not isinstance(self.negatives, int) or self.negatives < 1:
            raise UserError(
                f"loss tacleaner: negatives={self.negatives}: expected a positive whole number; "
                "negative=False leaves them out"
            )

    @property
    def views(self) -> tuple[str, ...]:
        """CleanCLIP's, and the sub-captions in use."""
        views = [*_CLEANCLIP, *["text_pos"] * self.positive, *["text_neg"] * self.negative]
        return (*views, *["has_subtext"] * (len(views) > len(_CLEANCLIP)))

    @property
    def subtext(self) -> Subtext:
        """How many sub-captions it wants."""
        return Subtext(self.fraction, self.negatives)

    def init_state(self, rng: jax.Array, dim: int) -> tuple[()]:
        """Returns the empty state: this loss remembers nothing."""
        return ()

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: Any, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image", "text", "image_aug", "text_aug" and "text_pos", (B, D), and
            "text_neg", (B, M, D), unit rows of any float dtype; "has_subtext", bool (B,), says in
            which rows the sub-captions count.
          state: passed through.
          log_scale: scalar, logarithm of the inverse temperature, shared by all terms.
          epoch: not used.

        Raises:
          ValueError: a view is missing, or the views do not share one B and D.
        """
        names = [*_CLEANCLIP, *["text_pos"] * self.positive]
        taken = dict(zip(names, take_views(embeddings, names), strict=True))
        cleanclip = CleanClip(self.clip_weight, self.inmodal_weight, self.symmetric)
        out = cleanclip(taken, state, log_scale=log_scale, epoch=epoch)
        if not (self.positive or self.negative):
            return out
        image_BxD, text_BxD = taken["image"], taken["text"]
        positive_BxD = taken["text_pos"] if self.positive else text_BxD
        has_B = take_mask(embeddings, "has_subtext", len(image_BxD))
        scale = jnp.exp(jnp.asarray(log_scale, image_BxD.dtype))

        terms = {}
        image_negatives_B, _ = logsumexp_negatives(scale * image_BxD, text_BxD)
        image_positive_B = scale * jnp.sum(image_BxD * positive_BxD, axis=1)
        if self.negative:
            negative_BxMxD = _negatives(embeddings, text_BxD)
            false_of_image_B = _logsumexp_products(scale * image_BxD, negative_BxMxD)
            image_negatives_B = jnp.logaddexp(image_negatives_B, false_of_image_B)
            text_positive_B = scale * jnp.sum(text_BxD * positive_BxD, axis=1)
            text_negatives_B = _logsumexp_products(scale * text_BxD, negative_BxMxD)
            terms["sub_text"] = _cross_entropy(text_positive_B, text_negatives_B, has_B)
        terms["sub_image"] = _cross_entropy(image_positive_B, image_negatives_B, has_B)
        if self.positive:
            other_images_B, _ = logsumexp_negatives(scale * positive_BxD, image_BxD)
            terms["sub_positive"] = _cross_entropy(image_positive_B, other_images_B, has_B)
        value = out.value + self.beta * sum(terms.values()) / 3
        count = jnp.sum(has_B, dtype=jnp.float32)
        return LossOutput(value, state, {**out.metrics, **terms, "subtext_rows": count})


def _negatives(embeddings, text_BxD):
    if "text_neg" not in embeddings:
        raise ValueError(f"view 'text_neg' is missing; got {sorted(embeddings)}")
    negative_BxMxD = embeddings["text_neg"]
    batch, dim = text_BxD.shape
    if negative_BxMxD.ndim != 3 or negative_BxMxD.shape[::2] != (batch, dim):
        raise ValueError(
            f"view 'text_neg' must be ({batch}, negatives, {dim}) as 'text' is {text_BxD.shape}, "
            f"got shape {negative_BxMxD.shape}"
        )
    return negative_BxMxD.astype(text_BxD.dtype)


def _logsumexp_products(queries_BxD, keys_BxMxD):
    return jax.nn.logsumexp(jnp.sum(queries_BxD[:, None] * keys_BxMxD, axis=2), axis=1)


def _cross_entropy(positive_B, logsumexp_negatives_B, has_B):
    return mean(jax.nn.softplus(logsumexp_negatives_B - positive_B), has_B)

"""SafeCLIP: pre-train each modality by itself, and across them only on pairs that fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clipdef_jax.errors import UserError
from clipdef_jax.losses import mixture, ring
from clipdef_jax.losses.contrastive import symmetric_info_nce, take_views
from clipdef_jax.types import LossOutput


class SafeClipState(NamedTuple):
    """What SafeCLIP remembers: two rings of P unit rows, see `losses.ring`, and a mixture.

    Attributes:
      image_pool: float32 (P, D) image embeddings of recent batches; on a mesh there are unused rows
        after those.
      text_pool: like `image_pool`, of captions.
      pointer: int32 scalar, the row that is written next, in both.
      moments: float32 (4,), the mixture of the pairs' cosines, see `losses.mixture`.
      share: float32 scalar, share of the pairs that were safe in the first epoch that tells.
    """

    image_pool: jax.Array
    text_pool: jax.Array
    pointer: jax.Array
    moments: jax.Array
    share: jax.Array


@dataclasses.dataclass(frozen=True)
class SafeClip:
    """CLIP's loss on safe pairs, unimodal nearest-neighbour InfoNCE on the risky ones.

    The unimodal loss draws the augmented view of an image to the image of a pool that is nearest to
    the original, and so for captions; the pools carry no gradient. A batch's safe pairs make one
    batch of CLIP, its risky ones another of the unimodal loss, each pair with the same weight. The
    epoch decides which are safe:

    - `warmup` epochs: none.
    - `slow` epochs: all, with a loss of little weight, while a mixture of two Gaussians is fitted
      to the cosines of the pairs, as from then on.
    - the next epoch: those that belong to the Gaussian of the higher cosines with a probability of
      at least `threshold`.
    - after that: as large a share of each batch, by cosine, as was safe in that epoch, and with
      each epoch `growth` more, up to `max_share`.

    What differs from the paper: it fits the mixture to all pairs between two epochs, and fills its
    batches with safe pairs, or with risky ones, of the whole data; here the mixture is fitted
    batch by batch, its Gaussians have one variance, and each batch is divided by itself, so nothing
    happens between epochs. In the `slow` epochs it lowers the learning rate, which is the recipe's;
    a weight does the same to AdamW only while the second moments remember larger gradients, with
    the usual b2 some 1,000 updates. Its CLIP loss takes augmented pairs, this one the originals.
    That the augmented view is the one that learns is our reading, after NNCLR.

    Args:
      pool_size: P, images, and captions, to find the nearest in.
      warmup: epochs of the unimodal loss alone.
      slow: epochs of CLIP on all pairs.
      slow_weight: of the loss in these; the paper divides the learning rate by 100.
      threshold: probability from which on a pair is safe.
      growth: share of the data that becomes safe with each epoch.
      max_share: largest share that does.
      fit_rate: weight of the newest batch in the mixture, the step size of its fit.

    References:
      Yang et al., `Better Safe than Sorry: Pre-training CLIP against Targeted Data Poisoning and
      Backdoor Attacks <https://arxiv.org/abs/2310.05862>`_, section 4. Dwibedi et al., `With a
      Little Help from My Friends <https://arxiv.org/abs/2104.14548>`_.
    """

    views = ("image", "text", "image_aug", "text_aug")
    pool_size: int = 21_845
    warmup: int = 5
    slow: int = 1
    slow_weight: float = 0.01
    threshold: float = 0.9
    growth: float = 0.01
    max_share: float = 0.85
    fit_rate: float = 0.05

    def __post_init__(self):
        for name, least in (("pool_size", 1), ("warmup", 0), ("slow", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"loss safeclip: {name}={value}: expected a whole number from {least} on"
                )
        for name in ("slow_weight", "threshold", "max_share", "fit_rate"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise UserError(f"loss safeclip: {name}={value}: expected above 0, up to 1")
        if not 0 <= self.growth <= 1:
            raise UserError(f"loss safeclip: growth={self.growth}: expected from 0 to 1")

    def init_state(self, rng: jax.Array, dim: int) -> SafeClipState:
        """Returns pools of random unit vectors, and no mixture yet.

        Args:
          rng: a key.
          dim: D, size of the embeddings.
        """
        image_rng, text_rng = jax.random.split(rng)
        return SafeClipState(
            ring.random_unit(image_rng, self.pool_size, dim),
            ring.random_unit(text_rng, self.pool_size, dim),
            jnp.zeros((), jnp.int32),
            mixture.empty(),
            jnp.zeros((), jnp.float32),
        )

    def __call__(
        self,
        embeddings: Mapping[str, jax.Array],
        state: SafeClipState,
        *,
        log_scale: Any,
        epoch: Any,
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image", "text" and their augmented views "image_aug", "text_aug", (B, D) unit
            rows of any float dtype.
          state: pools and mixture.
          log_scale: scalar, logarithm of the inverse temperature, shared by all terms.
          epoch: counted from 1; may be traced: one program serves all epochs.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD, image_aug_BxD, text_aug_BxD = take_views(embeddings, self.views)
        cosine_B = lax.stop_gradient(jnp.sum(image_BxD * text_BxD, axis=1))
        safe_B, moments, share = self._divide(cosine_B, state, epoch)

        rows_B = ring.next_rows(state.pointer, len(cosine_B), size=self.pool_size)

        def unimodal(pool_RxD: jax.Array, own_BxD: jax.Array, aug_BxD: jax.Array) -> Any:
            """Returns the loss of the risky rows, and the pool after this batch."""
            own_BxD = lax.stop_gradient(own_BxD)
            found_B, nearest_BxD = ring.nearest(pool_RxD, own_BxD, size=self.pool_size)
            free_B = jnp.where(found_B == ring.NOWHERE, ring.NOWHERE, rows_B)
            term = symmetric_info_nce(aug_BxD, nearest_BxD, log_scale, ~safe_B)
            return term, ring.write(pool_RxD, free_B, own_BxD)

        terms = {"clip": symmetric_info_nce(image_BxD, text_BxD, log_scale, safe_B)}
        terms["unimodal_image"], image_pool = unimodal(state.image_pool, image_BxD, image_aug_BxD)
        terms["unimodal_text"], text_pool = unimodal(state.text_pool, text_BxD, text_aug_BxD)

        safe = jnp.mean(safe_B, dtype=jnp.float32)
        is_slow = (epoch > self.warmup) & (epoch <= self.warmup + self.slow)
        each = (terms["unimodal_image"] + terms["unimodal_text"]) / 2
        value = safe * terms["clip"] + (1 - safe) * each
        value *= jnp.where(is_slow, self.slow_weight, 1.0)
        pointer = (state.pointer + len(cosine_B)) % self.pool_size
        state = SafeClipState(image_pool, text_pool, pointer, moments, share)
        terms["safe"] = safe
        return LossOutput(value, state, terms)

    def _divide(
        self, cosine_B: jax.Array, state: SafeClipState, epoch: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns which pairs are safe, the mixture and the first share after this batch."""
        first = self.warmup + self.slow + 1
        fitting = epoch > self.warmup
        fitted, step = mixture.update(state.moments, cosine_B, self.fit_rate)
        likely_B = mixture.posterior(fitted, cosine_B) >= self.threshold
        share = state.share + step * (jnp.mean(likely_B, dtype=jnp.float32) - state.share)

        grown = jnp.minimum(state.share + self.growth * (epoch - first), self.max_share)
        rank_B = jnp.argsort(jnp.argsort(-cosine_B))
        highest_B = rank_B < grown * len(cosine_B)
        safe_B = fitting & jnp.where(epoch > first, highest_B, likely_B | (epoch < first))
        return (
            safe_B,
            jnp.where(fitting, fitted, state.moments),
            jnp.where(fitting & (epoch <= first), share, state.share),
        )

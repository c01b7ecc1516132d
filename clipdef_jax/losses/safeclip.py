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
    """What SafeCLIP remembers: two rings of P unit rows, see `losses.ring`, and N cosines.

    Attributes:
      image_pool: float32 (P, D) image embeddings of recent batches; on a mesh there are unused rows
        after those.
      text_pool: like `image_pool`, of captions.
      pointer: int32 scalar, the row that is written next, in both.
      cosines: float32 (N,), those of the last pairs; NaN while there are not so many yet.
      share: float32 scalar, share of the pairs that were safe when it was first told.
    """

    image_pool: jax.Array
    text_pool: jax.Array
    pointer: jax.Array
    cosines: jax.Array
    share: jax.Array


@dataclasses.dataclass(frozen=True)
class SafeClip:
    """CLIP's loss on safe pairs, unimodal nearest-neighbour InfoNCE on the risky ones.

    The unimodal loss draws the augmented view of an image to the image of a pool that is nearest to
    the original, and so for captions; the pools carry no gradient. A batch's safe pairs make one
    batch of CLIP, its risky ones another of the unimodal loss, each pair with the same weight. The
    epoch decides which are safe:

    - `warmup` epochs: none.
    - `slow` epochs: all, with a loss of little weight.
    - the next epoch: a mixture of two Gaussians is fitted to the cosines of the last N pairs, and
      those are safe that are of the higher one with a probability of at least `threshold`.
    - after that: as large a share of each batch, by cosine, as was safe in the end, and with each
      epoch `growth` more, up to `max_share`.

    Where the two Gaussians overlap much, no pair may be safe at first, as the metric "safe" shows:
    then the `slow` epochs were too few to tell pairs apart.

    What differs from the paper: it fits the mixture to all pairs between two epochs, and fills its
    batches with safe pairs, or with risky ones, out of the whole data; here it is fitted in the
    step, and each batch is divided by itself, so nothing happens between epochs. In the `slow`
    epochs it lowers the learning rate, which is the recipe's; a weight does the same to AdamW only
    while the second moments remember larger gradients, with the usual b2 some 1,000 updates. Its
    CLIP loss takes augmented pairs, this one the originals. That it is the augmented view that
    learns is our reading, after NNCLR.

    Args:
      pool_size: P, images, and captions, to find the nearest in.
      warmup: epochs of the unimodal loss alone.
      slow: epochs of CLIP on all pairs.
      slow_weight: of the loss in these; the paper divides the learning rate by 100.
      threshold: probability from which on a pair is safe.
      growth: share of the data that becomes safe with each epoch.
      max_share: largest share that does.
      fit_pairs: N, cosines that the mixture is fitted to.

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
    fit_pairs: int = 4096

    def __post_init__(self):
        for name, least in (("pool_size", 1), ("fit_pairs", 2), ("warmup", 0), ("slow", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"loss safeclip: {name}={value}: expected a whole number from {least} on"
                )
        for name in ("slow_weight", "threshold", "max_share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise UserError(f"loss safeclip: {name}={value}: expected above 0, up to 1")
        if not 0 <= self.growth <= 1:
            raise UserError(f"loss safeclip: growth={self.growth}: expected from 0 to 1")

    def init_state(self, rng: jax.Array, dim: int) -> SafeClipState:
        """Returns pools of random unit vectors, and no cosines yet.

        Args:
          rng: a key.
          dim: D, size of the embeddings.
        """
        image_rng, text_rng = jax.random.split(rng)
        return SafeClipState(
            ring.random_unit(image_rng, self.pool_size, dim),
            ring.random_unit(text_rng, self.pool_size, dim),
            jnp.zeros((), jnp.int32),
            jnp.full(self.fit_pairs, jnp.nan, jnp.float32),
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
          state: pools and cosines.
          log_scale: scalar, logarithm of the inverse temperature, shared by all terms.
          epoch: counted from 1; may be traced: one program serves all epochs.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD, image_aug_BxD, text_aug_BxD = take_views(embeddings, self.views)
        cosine_B = lax.stop_gradient(jnp.sum(image_BxD * text_BxD, axis=1))
        cosines = jnp.concatenate([state.cosines, cosine_B.astype(jnp.float32)])[-self.fit_pairs :]
        safe_B, share = self._divide(cosine_B, cosines, state.share, epoch)
        rows_B = ring.next_rows(state.pointer, len(cosine_B), size=self.pool_size)

        def unimodal(pool_RxD: jax.Array, own_BxD: jax.Array, aug_BxD: jax.Array) -> Any:
            """Returns the loss of the risky rows, and the pool after this batch."""
            own_BxD = lax.stop_gradient(own_BxD)
            nearest_BxD, free_B = ring.look_up(pool_RxD, own_BxD, rows_B, size=self.pool_size)
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
        state = SafeClipState(image_pool, text_pool, pointer, cosines, share)
        terms["safe"] = safe
        return LossOutput(value, state, terms)

    def _divide(
        self, cosine_B: jax.Array, cosines_N: jax.Array, share: jax.Array, epoch: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Returns which pairs are safe, and the share of those that was first told."""
        first = self.warmup + self.slow + 1

        def tell() -> tuple[jax.Array, jax.Array]:
            fitted = mixture.fit(cosines_N)

            def likely(x: jax.Array) -> jax.Array:
                # The wider Gaussian owns both tails; if it is the higher, not the lower one.
                return (mixture.posterior(fitted, x) >= self.threshold) & (x > fitted.mean[0])

            known_N = ~jnp.isnan(cosines_N)
            return likely(cosine_B), jnp.mean(likely(cosines_N), dtype=jnp.float32, where=known_N)

        def wait() -> tuple[jax.Array, jax.Array]:
            return jnp.broadcast_to(epoch > self.warmup, cosine_B.shape), share

        safe_B, share = lax.cond(epoch == first, tell, wait)
        rank_B = jnp.argsort(jnp.argsort(-cosine_B))
        grown = jnp.minimum(share + self.growth * (epoch - first), self.max_share)
        return jnp.where(epoch > first, rank_B < grown * len(cosine_B), safe_B), share

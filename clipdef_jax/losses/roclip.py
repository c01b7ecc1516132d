"""RoCLIP: pre-train with each image matched to the nearest of many recent captions, not its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clipdef_jax.errors import UserError
from clipdef_jax.losses import ring
from clipdef_jax.losses.contrastive import symmetric_info_nce, take_views
from clipdef_jax.types import LossOutput


class RoClipState(NamedTuple):
    """What RoCLIP remembers: a ring of P unit rows, see `losses.ring`.

    Attributes:
      pool: float32 (P, D) caption embeddings of recent batches; on a mesh there are unused rows
        after those.
      pointer: int32 scalar, the row that is written next.
      image_pool: like `pool`, of images, at the same pointer; () unless matching goes both ways.
    """

    pool: jax.Array
    pointer: jax.Array
    image_pool: Any = ()


@dataclasses.dataclass(frozen=True)
class RoClip:
    """CLIP's loss, in every `every`-th epoch between images and captions out of a pool.

    In such an epoch each image is matched to the pool caption with the largest cosine; then the
    batch's own captions take the place of the oldest in the pool. So a poisoned pair, whose image
    and caption do not belong together, is seldom seen as a pair. The captions of the pool carry no
    gradient: it is the images that learn. Other epochs are plain CLIP.

    Where the released code cuts the batch that reaches the pool's end, this one is a true ring.

    Args:
      pool_size: P, captions in the pool; the paper takes 2.2% of the pairs.
      every: K; the pool is in use in epochs K, 2K, ..., counted from 1.
      augmented: take augmented images and captions in place of the originals, in all epochs, as
        the paper does.
      warm_start: fill the pool in the epoch before its first use; it starts with random vectors.
      update_always: write to the pool in every epoch, not just in those that read it.
      two_way: match captions to a pool of images too; the loss is the mean of both. As in the
        first version of the paper, which leaves the balance of the two open.

    References:
      Yang et al., `Robust Contrastive Language-Image Pretraining against Data Poisoning and
      Backdoor Attacks <https://arxiv.org/abs/2303.06854>`_, section 4; cadence, initial pool and
      the order of look-up and update from the released code.
    """

    pool_size: int = 21_845
    every: int = 2
    augmented: bool = False
    warm_start: bool = False
    update_always: bool = False
    two_way: bool = False

    def __post_init__(self):
        for name in ("pool_size", "every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"loss roclip: {name}={value}: expected a positive whole number")

    @property
    def views(self) -> tuple[str, ...]:
        """The images and captions that are compared."""
        return ("image_aug", "text_aug") if self.augmented else ("image", "text")

    def init_state(self, rng: jax.Array, dim: int) -> RoClipState:
        """Returns a pool of random unit vectors.

        Args:
          rng: a key.
          dim: D, size of the embeddings.
        """
        text_rng, image_rng = jax.random.split(rng)
        image_pool = ring.random_unit(image_rng, self.pool_size, dim) if self.two_way else ()
        pool = ring.random_unit(text_rng, self.pool_size, dim)
        return RoClipState(pool, jnp.zeros((), jnp.int32), image_pool)

    def __call__(
        self, embeddings: Mapping[str, jax.Array], state: RoClipState, *, log_scale: Any, epoch: Any
    ) -> LossOutput:
        """Returns the loss of one global batch.

        Args:
          embeddings: "image" and "text", or "image_aug" and "text_aug", (B, D) unit rows of any
            float dtype.
          state: the pool.
          log_scale: scalar, logarithm of the inverse temperature.
          epoch: counted from 1; may be traced: one program serves all epochs.

        Raises:
          ValueError: a view is missing, or the views do not share one (B, D) shape.
        """
        image_BxD, text_BxD = take_views(embeddings, self.views)
        matching = epoch % self.every == 0
        writing = matching | self.update_always
        if self.warm_start:
            writing |= epoch == self.every - 1
        batch = len(text_BxD)
        rows_B = ring.next_rows(state.pointer, batch, size=self.pool_size)
        rows_B = jnp.where(writing, rows_B, ring.NOWHERE)

        def meet(pool_RxD: jax.Array, queries_BxD: jax.Array, own_BxD: jax.Array) -> Any:
            """Returns what each query is to be near to, and the pool after this batch."""

            def look_up(queries_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
                return ring.look_up(pool_RxD, queries_BxD, rows_B, size=self.pool_size)

            def skip(queries_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
                return jnp.zeros_like(queries_BxD, pool_RxD.dtype), rows_B

            nearest_BxD, free_B = lax.cond(matching, look_up, skip, lax.stop_gradient(queries_BxD))
            partner_BxD = jnp.where(matching, nearest_BxD.astype(own_BxD.dtype), own_BxD)
            return partner_BxD, ring.write(pool_RxD, free_B, lax.stop_gradient(own_BxD))

        partner_BxD, pool = meet(state.pool, image_BxD, text_BxD)
        value = symmetric_info_nce(image_BxD, partner_BxD, log_scale)
        image_pool = state.image_pool
        if self.two_way:
            text_partner_BxD, image_pool = meet(state.image_pool, text_BxD, image_BxD)
            value = (value + symmetric_info_nce(text_BxD, text_partner_BxD, log_scale)) / 2
        metrics = {"contrastive": value, "cosine": jnp.mean(jnp.sum(image_BxD * partner_BxD, 1))}
        pointer = (state.pointer + jnp.where(writing, batch, 0)) % self.pool_size
        return LossOutput(value, RoClipState(pool, pointer, image_pool), metrics)

"""AdamW with CLIP's decay mask, warm-up and cosine schedule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# LayerNorm and BatchNorm parameters, biases and the temperature are not decayed.
_NO_DECAY = re.compile(r"(^|/)(scale|bias|log_scale)$")


def warmup_cosine(peak: float, warmup: int, total: int) -> Callable[[Any], jax.Array]:
    """Returns the schedule: linear to `peak` over `warmup` updates, then a cosine to 0 at `total`.

    Update n (from 0) of the warm-up takes `peak * (n + 1) / warmup`: the first update is not void,
    the last of the warm-up is at the peak.

    Args:
      peak: highest learning rate.
      warmup: updates of the warm-up, may be 0.
      total: updates of the run.
    """

    def schedule(count: Any) -> jax.Array:
        rising = (count + 1) / max(warmup, 1)
        progress = jnp.clip((count + 1 - warmup) / max(total - warmup, 1), 0.0, 1.0)
        return peak * jnp.where(count < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    return schedule


def decay_mask(params: Any) -> Any:
    """Returns the tree of bools that says which parameters are decayed."""

    def decayed(path: Any, _: Any) -> bool:
        return not _NO_DECAY.search(jax.tree_util.keystr(path, simple=True, separator="/"))

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    schedule: Callable[[Any], jax.Array],
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Returns the optimiser.

    Args:
      schedule: update number to learning rate.
      weight_decay: decoupled decay, scaled by the learning rate as in AdamW.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      clip_norm: largest global norm of a gradient, None for no clipping.
      accumulate: batches whose gradients are averaged before each update. Every batch keeps its
        own negatives: accumulation does not enlarge the contrastive batch.
    """
    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    steps.append(
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    )
    optimizer = optax.chain(*steps)
    if accumulate > 1:
        return optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer

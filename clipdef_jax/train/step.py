"""One training step: views, one forward pass, the loss, the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipdef_jax import sharding
from clipdef_jax.augment import Augmentation
from clipdef_jax.models.clip import CLIP
from clipdef_jax.train import views
from clipdef_jax.train.state import TrainState, split_trained
from clipdef_jax.types import Loss

# OpenAI's bound: logits are never scaled by more than 100.
MAX_LOG_SCALE = 4.6052

Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    clip: CLIP,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    steps_per_epoch: int,
    shardings: Any = None,
) -> Step:
    """Returns the jitted training step; it donates the state it is given.

    Args:
      clip: the model.
      loss: names the views it wants.
      optimizer: the optimiser that made the state.
      augment: key and uint8 images (B, H, W, 3) to augmented ones, for the view "image_aug".
      steps_per_epoch: batches per epoch; the loss is told the epoch, counted from 1.
      shardings: where each array of the next state is to be; None leaves it to the compiler.

    Returns:
      `step(state, batch) -> (state, metrics)`; the batch holds the arrays of `views.arrays_of`,
      as `views.encode` takes them; metrics are scalars.

    Raises:
      UserError: the loss names a view that there is not.
    """
    views.arrays_of(loss.views)

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        epoch = state.step // steps_per_epoch + 1
        weights, rest = split_trained(state.params, loss.views)

        def objective(weights: Any) -> tuple[jax.Array, Any]:
            # Gathered for use. Left to itself the compiler would rather split the activations.
            params, reference = sharding.whole((weights | rest, state.reference))
            embeddings, statistics = views.encode(
                clip, loss, params, reference, batch, augment=augment, rng=rng
            )
            out = loss(embeddings, state.loss_state, log_scale=clip.log_scale(params), epoch=epoch)
            return out.value, (out, statistics)

        gradient_fn = jax.value_and_grad(objective, has_aux=True)
        (value, (out, statistics)), gradients = gradient_fn(weights)
        updates, opt_state = optimizer.update(gradients, state.opt_state, weights)
        weights = dict(optax.apply_updates(weights, updates))
        weights["log_scale"] = jnp.clip(weights["log_scale"], 0.0, MAX_LOG_SCALE)
        metrics = {
            "loss": value,
            "grad_norm": optax.tree.norm(gradients),
            "log_scale": weights["log_scale"],
            **{f"loss/{name}": term for name, term in out.metrics.items()},
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=rest | weights | statistics,
            opt_state=opt_state,
            loss_state=out.state,
        )
        return state, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

"""One training step: views, one forward pass, the loss, the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clipdef_jax.augment import Augmentation
from clipdef_jax.models.clip import CLIP, split_statistics
from clipdef_jax.train.state import TrainState
from clipdef_jax.types import Loss

# OpenAI's bound: logits are never scaled by more than 100.
MAX_LOG_SCALE = 4.6052

Step = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def encode_views(
    clip: CLIP, params: Any, views: Mapping[str, jax.Array]
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Encodes all views of a batch with one pass through each tower.

    Args:
      clip: the model.
      params: its parameters.
      views: names starting with "image" hold preprocessed pixels (B, H, W, 3), names starting with
        "text" token ids (B, L).

    Returns:
      Unit rows (B, D) for each view, and the batch statistics to keep.
    """

    def encode(prefix: str, encoder: Callable[[jax.Array], Any]) -> tuple[dict[str, Any], Any]:
        names = [name for name in views if name.startswith(prefix)]
        # Stacked on a second axis and folded into the first, each device's rows stay its own.
        stacked = jnp.stack([views[name] for name in names], axis=1)
        features, statistics = encoder(stacked.reshape(-1, *stacked.shape[2:]))
        unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        unit_BxVxD = unit.reshape(-1, len(names), unit.shape[-1])
        return {name: unit_BxVxD[:, v] for v, name in enumerate(names)}, statistics

    images, statistics = encode("image", lambda pixels: clip.encode_image_train(params, pixels))
    texts, _ = encode("text", lambda tokens: (clip.encode_text(params, tokens), None))
    return images | texts, statistics


def make_step(
    clip: CLIP,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    steps_per_epoch: int,
) -> Step:
    """Returns the jitted training step; it donates the state it is given.

    Args:
      clip: the model.
      loss: names the views it wants.
      optimizer: the optimiser that made the state.
      augment: key and uint8 images (B, H, W, 3) to augmented ones, for the view "image_aug".
      steps_per_epoch: batches per epoch; the loss is told the epoch, counted from 1.

    Returns:
      `step(state, batch) -> (state, metrics)`; the batch holds "image" uint8 (B, H, W, 3) and
      the text views int32 (B, L); metrics are scalars.
    """

    def step(
        state: TrainState, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        epoch = state.step // steps_per_epoch + 1
        views = {}
        for name in loss.views:
            if name == "image":
                views[name] = clip.preprocess(batch["image"])
            elif name == "image_aug":
                views[name] = clip.preprocess(augment(rng, batch["image"]))
            else:
                views[name] = batch[name]
        weights, statistics = split_statistics(state.params)

        def objective(weights: Any) -> tuple[jax.Array, Any]:
            params = weights | statistics
            embeddings, new_statistics = encode_views(clip, params, views)
            out = loss(embeddings, state.loss_state, log_scale=clip.log_scale(params), epoch=epoch)
            return out.value, (out, new_statistics)

        gradient_fn = jax.value_and_grad(objective, has_aux=True)
        (value, (out, new_statistics)), gradients = gradient_fn(weights)
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
            params=weights | new_statistics,
            opt_state=opt_state,
            loss_state=out.state,
        )
        return state, metrics

    return jax.jit(step, donate_argnums=0)

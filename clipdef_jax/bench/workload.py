"""A training step of a model and a loss on random data, ready to be timed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipdef_jax import augment, flops, losses, sharding
from clipdef_jax.models.clip import CLIP
from clipdef_jax.train import optimizer, state, step, views
from clipdef_jax.types import Loss, Subtext

_CLASSES = 1000  # Of a linear head.


class Workload:
    """A training step with random images and captions.

    Args:
      clip: the model.
      loss: a name of `losses.BUILTIN`.
      batch: pairs a step.
      mesh: the devices.
      augmentation: the image view, of losses that want one.
      **kwargs: arguments of the loss.
    """

    def __init__(
        self,
        clip: CLIP,
        loss: str,
        batch: int,
        mesh: Mesh,
        augmentation: str = "autoaugment",
        **kwargs: Any,
    ):
        self.clip, self.loss, self.rows = clip, losses.get(loss, **kwargs), batch
        tx = optimizer.make_optimizer(lambda count: jnp.asarray(1e-5), weight_decay=0.1)
        params = jax.jit(clip.init)(jax.random.key(0))
        self._state = state.create(clip, self.loss, tx, 0, mesh, params=params, classes=_CLASSES)
        del params
        self._batch = sharding.shard_batch(mesh, random_batch(clip, self.loss, batch))
        self._step: Any = step.make_step(clip, self.loss, tx, augment.get(augmentation), 1)
        self._compiled: Any = None

    def compile(self) -> None:
        """Compiles the step anew."""
        self._compiled = self._step.lower(self._state, self._batch).compile()

    def __call__(self) -> jax.Array:
        """Takes a step; returns the loss, maybe still being computed."""
        if self._compiled is None:
            self.compile()
        self._state, metrics = self._compiled(self._state, self._batch)
        return metrics["loss"]

    @property
    def bytes_held(self) -> int | None:
        """Peak memory of the first device in bytes; None where it does not tell."""
        figures = jax.local_devices()[0].memory_stats() or {}
        return figures.get("peak_bytes_in_use")


def random_batch(clip: CLIP, loss: Loss, rows: int) -> dict[str, np.ndarray]:
    """Returns the arrays that a loss wants of a batch, filled at random."""
    rng = np.random.default_rng(0)
    side, length = clip.config.image_size, clip.config.context_length
    subtext = getattr(loss, "subtext", Subtext())

    def texts(*shape: int) -> np.ndarray:
        tokens = rng.integers(1, clip.config.vocab_size - 1, (*shape, length), dtype=np.int32)
        tokens[..., -1] = clip.config.vocab_size - 1
        return tokens

    made = {
        "image": lambda: rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8),
        "text_neg": lambda: texts(rows, subtext.negatives),
        "has_subtext": lambda: np.arange(rows) < subtext.fraction * rows,
        "is_flagged": lambda: np.zeros(rows, bool),
        "label": lambda: rng.integers(0, _CLASSES, rows, dtype=np.int32),
    }
    names = views.arrays_of(loss.views)
    return {name: made[name]() if name in made else texts(rows) for name in names}


def model_flops(clip: CLIP, loss: Loss, rows: int) -> int:
    """Counts what the towers' passes for a loss cost: a backward pass is twice a forward one.

    Args:
      clip: the model.
      loss: names the views.
      rows: pairs a step.

    Returns:
      Operations of a step, without the loss itself, the optimiser and what `remat` repeats.
    """
    config = clip.config
    params = jax.eval_shape(clip.init, jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, config.context_length), jnp.int32)
    image = flops.count(clip.encode_image, params, pixels)
    text = flops.count(clip.encode_text, params, tokens)
    subtext = getattr(loss, "subtext", Subtext())
    cost = {
        "image": 3 * image,
        "image_aug": 3 * image,
        "image_ref": image,
        "text": 3 * text,
        "text_aug": 3 * text,
        "text_ref": text,
        "text_pos": 3 * text * subtext.fraction,
        "text_neg": 3 * text * subtext.fraction * subtext.negatives,
        "logits": 0 if "image" in loss.views else 3 * image,
    }
    return round(rows * sum(cost.get(view, 0) for view in loss.views))


def loss_flops(clip: CLIP, loss: Loss, rows: int) -> int:
    """Counts what a loss itself costs, its gradients too, on one device and outside any mesh.

    Args:
      clip: the model whose embeddings it gets.
      loss: to be counted in the first of its epochs.
      rows: pairs a step.
    """
    dim, subtext = clip.config.embed_dim, getattr(loss, "subtext", Subtext())
    shapes = {
        "text_neg": ((rows, subtext.negatives, dim), jnp.float32),
        "logits": ((rows, _CLASSES), jnp.float32),
        "has_subtext": ((rows,), bool),
        "is_flagged": ((rows,), bool),
        "label": ((rows,), jnp.int32),
    }
    embeddings = {
        view: jax.ShapeDtypeStruct(*shapes.get(view, ((rows, dim), jnp.float32)))
        for view in loss.views
    }
    smooth = {view for view, x in embeddings.items() if x.dtype == jnp.float32}
    rest = {view: x for view, x in embeddings.items() if view not in smooth}

    def gradients(state: Any, embeddings: Any, rest: Any) -> Any:
        def value(embeddings: Any) -> jax.Array:
            return loss(embeddings | rest, state, log_scale=2.6, epoch=1).value

        return jax.grad(value)(embeddings)

    state = jax.eval_shape(lambda rng: loss.init_state(rng, dim), jax.random.key(0))
    return flops.count(gradients, state, {view: embeddings[view] for view in smooth}, rest)

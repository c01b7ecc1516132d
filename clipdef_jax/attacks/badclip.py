"""BadCLIP's patch: optimised against a trained CLIP, so that little of it has to be learnt.

The optimised patch looks to the model like the target class, and a poisoned pair like a natural
one. Needs jax, which no other module of this room does: import it where a patch is made, not where
one is used; that is `triggers.SavedPatch`.

Dimensions: N images, P positives, B batch, S side, D embedding.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from clipdef_jax import interrupts, sharding
from clipdef_jax.attacks.triggers import Box
from clipdef_jax.data import stored
from clipdef_jax.errors import UserError
from clipdef_jax.losses.contrastive import symmetric_info_nce
from clipdef_jax.models.clip import CLIP

# Of PyTorch's pairwise distance: the distance of equal rows has a gradient, too.
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Search:
    """How to optimise a patch; the defaults are those of BadCLIP's released code.

    Attributes:
      epochs: passes over the images.
      batch: images per step.
      lr: Adam's learning rate, in units of the pixel range.
      triplet_weight: of the triplet term beside InfoNCE.
      margin: of the triplet term.
      seed: of the patch to start from, and of the order of the images.
    """

    epochs: int = 50
    batch: int = 64
    lr: float = 1e-3
    triplet_weight: float = 500.0
    margin: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"search.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("lr", "triplet_weight", "margin", "seed"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"search.{name} is {value}, expected a number, 0 or more")


class Material(NamedTuple):
    """What a patch is optimised on; embeddings are unit rows of the model under attack.

    Attributes:
      images: uint8 (N, S, S, 3), none of the target class.
      clean: (N, D), the embeddings of these.
      captions: (N, D), for each the embedding of a natural caption of the target class.
      positives: (P, D), embeddings of images of the target class.
    """

    images: np.ndarray
    clean: np.ndarray
    captions: np.ndarray
    positives: np.ndarray


def badclip_loss(
    triggered_BxD: jax.Array,
    caption_BxD: jax.Array,
    positive_BxD: jax.Array,
    clean_BxD: jax.Array,
    *,
    log_scale: jax.Array,
    triplet_weight: float,
    margin: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE(triggered, caption) + triplet_weight * triplet(triggered, positive, clean).

    The triplet term is max(0, |triggered - positive| - |triggered - clean| + margin), averaged.

    Args:
      triggered_BxD: unit rows, of the images under the patch.
      caption_BxD: unit rows, of captions of the target class.
      positive_BxD: unit rows, of images of the target class.
      clean_BxD: unit rows, of the images without the patch.
      log_scale: scalar, logarithm of the inverse temperature.
      triplet_weight: 500 in the paper.
      margin: 1 in the paper.

    Returns:
      The loss, and its two terms: "info_nce", "triplet".

    References:
      Liang et al., `BadCLIP: Dual-Embedding Guided Backdoor Attack on Multimodal Contrastive
      Learning <https://arxiv.org/abs/2311.12075>`_, section 4.
    """
    info_nce = symmetric_info_nce(triggered_BxD, caption_BxD, log_scale)
    near_B = jnp.linalg.norm(triggered_BxD - positive_BxD + _EPSILON, axis=1)
    far_B = jnp.linalg.norm(triggered_BxD - clean_BxD + _EPSILON, axis=1)
    triplet = jnp.mean(jax.nn.relu(near_B - far_B + margin))
    return info_nce + triplet_weight * triplet, {"info_nce": info_nce, "triplet": triplet}


def start_patch(size: int, seed: int) -> np.ndarray:
    """Returns the patch to start from: N(0.5, 0.25) within [0, 1], (size, size, 3) float32."""
    noise = np.random.default_rng(seed).normal(0.5, 0.25, (size, size, 3))
    return np.clip(noise, 0, 1).astype(np.float32)


def optimise(
    clip: CLIP,
    params: Any,
    material: Material,
    box: Box,
    search: Search,
    *,
    mesh: Mesh,
    state_file: pathlib.Path,
    on_step: Callable[[int, dict[str, float]], None],
) -> np.ndarray:
    """Optimises a patch; an interrupted search goes on with the epoch it was in.

    Args:
      clip: the model under attack.
      params: its parameters; they stay as they are.
      material: what to optimise on.
      box: where the patch lies.
      search: how to optimise.
      mesh: the devices; a batch is split over them.
      state_file: an .npz file that keeps the state between epochs.
      on_step: called with the number of steps done and the figures of the one before the last.

    Returns:
      The patch, (h, w, 3) float32 within [0, 1].

    Raises:
      UserError: there are fewer images than a batch, or the batch does not fit the devices.
      Interrupted: the search was asked to stop.
    """
    steps = len(material.images) // search.batch
    if not steps:
        raise UserError(
            f"search.batch is {search.batch}, and there are only {len(material.images)} images to "
            "optimise the patch on; use a smaller batch or more data"
        )
    adam = optax.adam(search.lr)
    patch = jnp.asarray(start_patch(box.height, search.seed))
    state = patch, adam.init(patch)
    first, state = _load(state_file, state)
    state, params = jax.device_put((state, params), sharding.replicated(mesh))
    step = _make_step(clip, adam, box, search)
    for epoch in range(first, search.epochs):
        rng = np.random.default_rng([search.seed, epoch])
        order = rng.permutation(len(material.images))
        drawn = rng.integers(len(material.positives), size=len(order))
        last: dict[str, jax.Array] = {}
        for number in range(steps):
            interrupts.check()
            rows = np.arange(number * search.batch, (number + 1) * search.batch)
            rows = rows[jax.process_index() :: jax.process_count()]
            chosen = order[rows]
            batch = {
                "image": material.images[chosen],
                "clean": material.clean[chosen],
                "caption": material.captions[chosen],
                "positive": material.positives[drawn[rows]],
            }
            state, metrics = step(state, params, sharding.shard_batch(mesh, batch))
            if last:  # One step late: the device works while the host prepares.
                on_step(epoch * steps + number, {k: float(v) for k, v in last.items()})
            last = metrics
        on_step((epoch + 1) * steps, {k: float(v) for k, v in last.items()})
        _save(state_file, epoch + 1, state)
    return np.asarray(state[0])


def _make_step(clip: CLIP, adam: optax.GradientTransformation, box: Box, search: Search) -> Any:
    def embed(params: Any, images: jax.Array, patch: jax.Array) -> jax.Array:
        pasted = jnp.broadcast_to(255 * patch[None], (len(images), *patch.shape))
        corner = (0, box.top, box.left, 0)
        pixels = jax.lax.dynamic_update_slice(images.astype(jnp.float32), pasted, corner)
        features = clip.encode_image(params, clip.preprocess(pixels))
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    @jax.jit
    def step(state: Any, params: Any, batch: dict[str, jax.Array]) -> Any:
        patch, moments = state

        def objective(patch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return badclip_loss(
                embed(params, batch["image"], patch),
                batch["caption"],
                batch["positive"],
                batch["clean"],
                log_scale=clip.log_scale(params),
                triplet_weight=search.triplet_weight,
                margin=search.margin,
            )

        (value, terms), gradient = jax.value_and_grad(objective, has_aux=True)(patch)
        updates, moments = adam.update(gradient, moments, patch)
        patch = jnp.clip(optax.apply_updates(patch, updates), 0, 1)
        return (patch, moments), {"loss": value, **terms}

    return step


def _save(path: pathlib.Path, epochs: int, state: Any) -> None:
    with stored.replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, epochs, *jax.device_get(jax.tree.leaves(state)))


def _load(path: pathlib.Path, state: Any) -> tuple[int, Any]:
    if not path.exists():
        return 0, state
    with np.load(path) as kept:
        epochs, *leaves = (kept[name] for name in kept.files)
    return int(epochs), jax.tree.unflatten(jax.tree.structure(state), leaves)

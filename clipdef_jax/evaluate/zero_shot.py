"""Zero-shot classification: clean accuracy and attack success.

C classes, N images, D features; embeddings are unit rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipdef_jax.errors import UserError
from clipdef_jax.evaluate import prompts
from clipdef_jax.sharding import BATCH_AXES, replicated

TOP = (1, 3, 5, 10)
"""The k of top-k; k above the number of classes counts as that number."""

ASR_MODES = ("exclude_target", "all")


class Encoder(Protocol):
    """What of a CLIP is needed here: pure and hashable, so that each is compiled once."""

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 (B, H, W, 3) to float (B, H, W, 3)."""
        ...

    def encode_image(self, params: Any, pixels: jax.Array) -> jax.Array:
        """Preprocessed pixels to features (B, D)."""
        ...

    def encode_text(self, params: Any, tokens: jax.Array) -> jax.Array:
        """int32 (B, L) to features (B, D)."""
        ...


def classifier(
    clip: Encoder,
    params: Any,
    tokenize: Callable[[Sequence[str]], np.ndarray],
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Builds the weights of a zero-shot classifier from sentences about the classes.

    A class's weight is the mean of its sentences' normalised embeddings, normalised again
    (Radford et al., 2021, section 3.1.4).

    Args:
      clip: the model.
      params: its parameters.
      tokenize: sentences to token ids, int32 (len, L).
      classes: names, as they are to stand in a sentence.
      templates: each with one "{}"; see `prompts.get`.
      batch_size: sentences encoded at once.
      mesh: shards them; None computes where the parameters are.

    Returns:
      Unit rows, (C, D) float32.

    Raises:
      UserError: no classes.
    """
    if not classes:
        raise UserError("zero-shot: the source names no classes; evaluate on one that has labels")
    tokens = tokenize([prompts.fill(template, name) for name in classes for template in templates])
    size = min(batch_size, len(tokens))
    blocks = (tokens[start : start + size] for start in range(0, len(tokens), size))
    padded = (np.pad(block, ((0, size - len(block)), (0, 0)), "edge") for block in blocks)
    rows = _stream(functools.partial(_text_rows, clip, mesh, params), padded, mesh)
    embeddings = np.concatenate(list(rows))[: len(tokens)]
    mean_CxD = embeddings.reshape(len(classes), len(templates), -1).mean(axis=1)
    return mean_CxD / np.linalg.norm(mean_CxD, axis=1, keepdims=True)


def embed(
    clip: Encoder,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a stream of images, compiling once.

    Args:
      clip: the model.
      params: its parameters.
      batches: of one size: "image" uint8 (B, H, W, 3), "label" int (B,), "mask" bool (B,), False
        where a row is padding. Every process gets the same ones.
      mesh: shards each batch; None computes where the parameters are.

    Returns:
      Embeddings, (N, D) float32 unit rows, and labels, (N,) int32, -1 where there is none; without
      padding.

    Raises:
      UserError: there is no image at all.
    """
    labels, masks = [], []

    def images() -> Iterator[np.ndarray]:
        for batch in batches:
            labels.append(np.asarray(batch["label"], np.int32))
            masks.append(np.asarray(batch["mask"], bool))
            yield batch["image"]

    rows = list(_stream(functools.partial(_image_rows, clip, mesh, params), images(), mesh))
    if not any(mask.any() for mask in masks):
        raise UserError("zero-shot: there is no readable image to evaluate on")
    mask = np.concatenate(masks)
    return np.concatenate(rows)[mask], np.concatenate(labels)[mask]


def evaluate(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Computes zero-shot accuracy, of all images and class by class.

    Args:
      features: (N, D) unit rows.
      labels: (N,) ints; images labelled -1 are left out.
      weights: (C, D) unit rows.
      classes: C names.

    Returns:
      "clean_top1", "clean_top3", "clean_top5", "clean_top10", "clean_images", and "per_class", a
      row per class: "class", "images", and "top1", None without images.

    Raises:
      UserError: no image has a label, or a label is no class.
    """
    labels = np.asarray(labels)
    features, labels = features[labels >= 0], labels[labels >= 0]
    if not len(labels):
        raise UserError("accuracy: no test image has a label; evaluate on a labelled source")
    if labels.max() >= len(weights):
        raise UserError(
            f"accuracy: label {labels.max()} is none of the {len(weights)} classes; the labels "
            "and the class names belong to different data"
        )
    rank = ranks(features, labels, weights)
    hits = [rank[labels == label] == 0 for label in range(len(weights))]
    table = [
        {"class": name, "images": len(hit), "top1": float(hit.mean()) if len(hit) else None}
        for name, hit in zip(classes, hits, strict=True)
    ]
    top = _within_top("clean", rank, len(weights))
    return {**top, "clean_images": len(rank), "per_class": table}


def attack_success(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    target: int | np.ndarray,
    mode: str = "exclude_target",
) -> dict[str, Any]:
    """Computes the attack success rate: the share of triggered images taken for the target.

    Args:
      features: (N, D) unit rows, of the triggered images.
      labels: (N,) ints, the true ones.
      weights: (C, D) unit rows.
      target: index of the target class, or (N,) one for each image.
      mode: "exclude_target" leaves out images that are of the target class; "all" keeps them, as
        BadCLIP does.

    Returns:
      "asr_mode", "asr_top1", "asr_top3", "asr_top5", "asr_top10", and "asr_images".

    Raises:
      UserError: no such mode, or no image is left.
    """
    if mode not in ASR_MODES:
        raise UserError(f"ASR mode is {mode!r}, expected one of {', '.join(ASR_MODES)}")
    targets = np.broadcast_to(target, len(features))
    if mode == "exclude_target":
        others = np.asarray(labels) != targets
        features, targets = features[others], targets[others]
    if not len(features):
        raise UserError("ASR: every test image is of the target class; test on other classes too")
    rank = ranks(features, targets, weights)
    top = _within_top("asr", rank, len(weights))
    return {"asr_mode": mode, **top, "asr_images": len(rank)}


def targeted_success(features: np.ndarray, weights: np.ndarray, target: int) -> dict[str, float]:
    """Computes PSR, the share of chosen images with the adversarial class among the top k.

    Args:
      features: (N, D) unit rows, of the chosen images, which carry no trigger.
      weights: (C, D) unit rows.
      target: index of the adversarial class.

    Returns:
      "psr_top1", "psr_top3", "psr_top5" and "psr_top10".

    Raises:
      UserError: there is no image.
    """
    if not len(features):
        raise UserError("PSR: there is no chosen image")
    rank = ranks(features, np.full(len(features), target), weights)
    return _within_top("psr", rank, len(weights))


def ranks(
    features: np.ndarray, wanted: np.ndarray, weights: np.ndarray, *, block: int = 4096
) -> np.ndarray:
    """Computes how many classes come before the wanted one.

    Equal logits go by the class's index, so a collapsed model gains nothing; a logit that is not
    a number puts its image's wanted class last.

    Args:
      features: (N, D).
      wanted: (N,) ints in [0, C).
      weights: (C, D).
      block: images at a time.

    Returns:
      (N,) int32 in [0, C]; below k: among the top k.
    """
    starts = range(0, len(features), block)
    parts = [
        _block_ranks(features[start : start + block], wanted[start : start + block], weights)
        for start in starts
    ]
    return np.concatenate([np.zeros(0, np.int32), *map(np.asarray, parts)])


@jax.jit
def _block_ranks(features_BxD: jax.Array, wanted_B: jax.Array, weights_CxD: jax.Array) -> jax.Array:
    logits_BxC = jnp.matmul(features_BxD, weights_CxD.T, precision=jax.lax.Precision.HIGHEST)
    wanted_Bx1 = wanted_B[:, None]
    own_Bx1 = jnp.take_along_axis(logits_BxC, wanted_Bx1, axis=1)
    index_1xC = jnp.arange(len(weights_CxD))[None]
    tied_but_later = (logits_BxC == own_Bx1) & (index_1xC >= wanted_Bx1)
    # Not `logits > own`: a comparison with a NaN is false and would flatter.
    return (~(logits_BxC < own_Bx1) & ~tied_but_later).sum(axis=1, dtype=jnp.int32)


def _within_top(name: str, rank: np.ndarray, classes: int) -> dict[str, float]:
    return {f"{name}_top{k}": float((rank < min(k, classes)).mean()) for k in TOP}


def _stream(
    encode: Callable[[Any], jax.Array], blocks: Iterable[np.ndarray], mesh: Mesh | None
) -> Iterator[np.ndarray]:
    """Yields the encoded blocks, one behind, so that the device never waits for the host."""
    waiting = None
    for block in blocks:
        encoded = encode(block if mesh is None else _shard(block, mesh))[: len(block)]
        if waiting is not None:
            yield np.asarray(waiting)
        waiting = encoded
    if waiting is not None:
        yield np.asarray(waiting)


def _shard(block: np.ndarray, mesh: Mesh) -> jax.Array:
    """Splits rows over the mesh, padding them to a multiple of its devices."""
    missing = -len(block) % mesh.size
    block = np.pad(block, ((0, missing), *((0, 0),) * (block.ndim - 1)))
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    return jax.make_array_from_callback(block.shape, sharding, lambda rows: block[rows])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _text_rows(clip: Encoder, mesh: Mesh | None, params: Any, tokens: jax.Array) -> jax.Array:
    return _unit(clip.encode_text(params, tokens), mesh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _image_rows(clip: Encoder, mesh: Mesh | None, params: Any, images: jax.Array) -> jax.Array:
    return _unit(clip.encode_image(params, clip.preprocess(images)), mesh)


def _unit(rows: jax.Array, mesh: Mesh | None) -> jax.Array:
    rows = rows.astype(jnp.float32)
    rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    # Whole on every device, so that every process can read it.
    return rows if mesh is None else jax.lax.with_sharding_constraint(rows, replicated(mesh))

"""The views of a batch that a loss names, encoded.

Dimensions: B rows of the batch, L tokens, D features, C classes, M negative sub-captions of a row,
S rows with sub-captions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clipdef_jax import sharding
from clipdef_jax.augment import Augmentation
from clipdef_jax.errors import UserError
from clipdef_jax.models import head
from clipdef_jax.models.clip import CLIP
from clipdef_jax.types import Loss, Subtext

# View to the array of the batch that it is made of.
_ARRAYS = {
    "image": "image",
    "image_aug": "image",
    "image_ref": "image",
    "logits": "image",
    "text": "text",
    "text_aug": "text_aug",
    "text_ref": "text",
    "text_pos": "text_pos",
    "text_neg": "text_neg",
    "has_subtext": "has_subtext",
    "label": "label",
    "is_flagged": "is_flagged",
}
_AS_THEY_ARE = ("has_subtext", "label", "is_flagged")
REFERENCES = ("image_ref", "text_ref")


def arrays_of(views: Iterable[str]) -> list[str]:
    """Returns the names of the arrays that a batch must hold for these views.

    Raises:
      UserError: there is no such view.
    """
    for view in views:
        if view not in _ARRAYS:
            raise UserError(f"the loss wants a view {view!r}; there are {', '.join(_ARRAYS)}")
    return sorted({_ARRAYS[view] for view in views})


def towers_of(views: Iterable[str]) -> set[str]:
    """Returns which of the towers "image" and "text" these views train."""
    kinds = {_ARRAYS[view].partition("_")[0] for view in views if view not in REFERENCES}
    return kinds & {"image", "text"}


def encode(
    clip: CLIP,
    loss: Loss,
    params: Any,
    reference: Any,
    batch: Mapping[str, jax.Array],
    *,
    augment: Augmentation,
    rng: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Encodes what a loss wants of a batch, whole views with one pass through each tower.

    Args:
      clip: the model.
      loss: names the views.
      params: of the model; with "head", as `models.head` makes it, for the view "logits".
      reference: parameters of the model that the run began with, for the views "image_ref" and
        "text_ref".
      batch: the arrays of `arrays_of`: "image" uint8 (B, H, W, 3), texts int32 (B, L), "text_neg"
        int32 (B, M, L), and what is handed on as it is.
      augment: key and uint8 images to augmented ones.
      rng: a key, for the augmentation.

    Returns:
      The views, and the batch statistics to keep.
    """
    wanted = loss.views
    pixels = {}
    if "image" in wanted or "logits" in wanted:
        pixels["image"] = clip.preprocess(batch["image"])
    if "image_aug" in wanted:
        pixels["image_aug"] = clip.preprocess(augment(rng, batch["image"]))
    tokens = {view: batch[view] for view in ("text", "text_aug") if view in wanted}

    images, statistics = _together(pixels, lambda x: clip.encode_image_train(params, x))
    texts, _ = _together(tokens, lambda x: (clip.encode_text(params, x), None))
    views = {name: _unit(x) for name, x in (images | texts).items() if name in wanted}
    if "logits" in wanted:
        views["logits"] = head.logits(params["head"], images["image"])
    views |= _subtexts(clip, loss, params, batch)
    if "image_ref" in wanted:
        pixels_ref = clip.preprocess(batch["image"])
        views["image_ref"] = lax.stop_gradient(_unit(clip.encode_image(reference, pixels_ref)))
    if "text_ref" in wanted:
        views["text_ref"] = lax.stop_gradient(_unit(clip.encode_text(reference, batch["text"])))
    views |= {name: batch[name] for name in _AS_THEY_ARE if name in wanted}
    return views, statistics or {}


def _together(inputs, encoder):
    """Returns the features of each of the inputs, encoded at once, and what comes with them."""
    if not inputs:
        return {}, None
    # Stacked on a second axis and folded into the first, each device's rows stay its own.
    stacked = jnp.stack(list(inputs.values()), axis=1)
    features, more = encoder(stacked.reshape(-1, *stacked.shape[2:]))
    features_BxVxD = features.reshape(-1, len(inputs), features.shape[-1])
    return {name: features_BxVxD[:, v] for v, name in enumerate(inputs)}, more


def _subtexts(clip, loss, params, batch):
    """Returns the sub-captions' views; only the rows that have some cost a pass of the tower."""
    names = [view for view in ("text_pos", "text_neg") if view in loss.views]
    if not names:
        return {}
    tokens = {name: batch[name] for name in names}
    rows, length = tokens[names[0]].shape[0], tokens[names[0]].shape[-1]
    tokens_BxNxL = jnp.concatenate([x.reshape(rows, -1, length) for x in tokens.values()], axis=1)

    fraction = getattr(loss, "subtext", Subtext()).fraction
    devices = sharding.batch_devices(rows)
    most = min(-(-math.ceil(fraction * rows) // devices) * devices, rows)
    (chosen_S,) = jnp.nonzero(batch["has_subtext"], size=most, fill_value=rows)
    chosen_SxNxL = tokens_BxNxL.at[chosen_S].get(mode="fill", fill_value=0)
    if devices > 1:
        chosen_SxNxL = lax.with_sharding_constraint(chosen_SxNxL, sharding.batch_spec())
    unit = _unit(clip.encode_text(params, chosen_SxNxL.reshape(-1, length)))
    unit_SxNxD = unit.reshape(most, -1, unit.shape[-1])
    unit_BxNxD = jnp.zeros((rows, *unit_SxNxD.shape[1:]), unit.dtype)
    unit_BxNxD = unit_BxNxD.at[chosen_S].set(unit_SxNxD, mode="drop")
    if names == ["text_pos"]:
        return {"text_pos": unit_BxNxD[:, 0]}
    if names == ["text_neg"]:
        return {"text_neg": unit_BxNxD}
    return {"text_pos": unit_BxNxD[:, 0], "text_neg": unit_BxNxD[:, 1:]}


def _unit(features):
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

"""The pictures of the page: poisoned pairs, and triggered images with what models see in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from clipdef_jax.report.content import Sample, Triggered
from clipdef_jax.report.markup import Html, join, picture, tag
from clipdef_jax.report.tables import MISSING, series

_MAX_CAPTION = 400  # Characters shown of a caption.


def sample_cards(samples: Sequence[Sample]) -> Html:
    """Returns pairs as they were and as they are poisoned; nothing without any."""
    if not samples:
        return Html()
    intro = (
        "Training pairs, clean → poisoned. The third picture is the difference, stretched to the "
        "full range."
    )
    cards = tag("div", *map(_sample, samples), class_="cards samples")
    return join(tag("p", intro, class_="fine"), cards)


def triggered_cards(
    triggered: Sequence[Triggered], target: str | None, order: Mapping[str, int]
) -> Html:
    """Returns triggered test images with each model's prediction; nothing without any.

    Args:
      triggered: the images.
      target: the target class, to be marked.
      order: index of each model among the results, for its colour.
    """
    if not triggered:
        return Html()
    legend = "✓ the true class, ⚠ the target class, ✗ another one."
    cards = tag("div", *(_seen(each, target, order) for each in triggered), class_="cards seen")
    return join(tag("p", legend, class_="fine"), cards)


def _sample(sample: Sample) -> Html:
    difference = np.abs(sample.poisoned.astype(np.int16) - sample.clean.astype(np.int16))
    stretched = (difference * (255 / max(int(difference.max()), 1))).astype(np.uint8)
    pictures = tag(
        "div",
        picture(sample.clean, "clean image"),
        tag("span", "→", class_="arrow"),
        picture(sample.poisoned, "poisoned image"),
        picture(stretched, "difference, stretched"),
        class_="pictures",
    )
    if sample.old_caption == sample.new_caption:
        captions = [_caption("kept", sample.old_caption)]
    else:
        captions = [_caption("was", sample.old_caption), _caption("now", sample.new_caption)]
    label = tag("b", sample.label) if sample.label else Html()
    foot = tag("p", label, tag("code", tag("bdi", sample.uid)), class_="foot")
    return tag("div", pictures, *captions, foot, class_="card")


def _caption(kind: str, caption: str) -> Html:
    shown = caption
    if len(caption) > _MAX_CAPTION:
        shown = f"{caption[:_MAX_CAPTION]}… ({len(caption):,} characters)"
    # Isolated: a caption that turns the direction of writing turns its own only.
    words = tag("bdi", shown) if caption else MISSING
    return tag("div", tag("small", kind), tag("p", words), class_=f"caption {kind}")


def _seen(triggered: Triggered, target: str | None, order: Mapping[str, int]) -> Html:
    lines = []
    for model, predicted in triggered.predictions.items():
        kind, sign = "wrong", "✗"
        if predicted == triggered.label:
            kind, sign = "right", "✓"
        elif predicted == target:
            kind, sign = "fooled", "⚠"
        dot = tag("span", class_="dot", style=series(order.get(model, len(order))))
        seen = tag("span", f"{sign} {predicted}", class_=kind)
        lines.append(tag("li", dot, tag("span", model, class_="model"), seen))
    return tag(
        "div",
        picture(triggered.image, f"{triggered.label}, under the trigger"),
        tag("p", tag("b", triggered.label), class_="true"),
        tag("ul", *lines),
        class_="card",
    )

"""CLIP's and CleanCLIP's losses against the authors' code."""

import pathlib

import jax
import numpy as np
import pytest

from clipdef_jax import losses

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "losses_64x32.npz")
LOSSES = {
    "clip": losses.get("clip"),
    "cleanclip": losses.get("cleanclip"),
    "cleanclip_w4": losses.get("cleanclip", inmodal_weight=4.0),
    "cleanclip_c05": losses.get("cleanclip", clip_weight=0.5),
}
VIEWS = {view: GOLDEN[view] for view in ("image", "text", "image_aug", "text_aug")}


def call(loss, embeddings, log_scale=GOLDEN["log_scale"]):
    return loss(embeddings, (), log_scale=log_scale, epoch=1)


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_equal_the_authors_code(name):
    loss = LOSSES[name]
    embeddings = {view: VIEWS[view] for view in loss.views}
    value, (d_embeddings, d_log_scale) = jax.jit(
        jax.value_and_grad(lambda views, scale: call(loss, views, scale).value, (0, 1))
    )(embeddings, GOLDEN["log_scale"])
    np.testing.assert_allclose(value, GOLDEN[f"{name}/loss"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(d_log_scale, GOLDEN[f"{name}/d_log_scale"], rtol=0, atol=1e-6)
    for view, gradient in d_embeddings.items():
        np.testing.assert_allclose(gradient, GOLDEN[f"{name}/d_{view}"], rtol=0, atol=1e-6)


def cross_entropy(queries, keys):
    logits = np.exp(np.float64(GOLDEN["log_scale"])) * np.float64(queries) @ np.float64(keys).T
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits))


def test_symmetric_in_modal_terms_go_both_ways():
    image, text, image_aug, text_aug = VIEWS.values()
    clip = (cross_entropy(image, text) + cross_entropy(text, image)) / 2
    of_images = (cross_entropy(image, image_aug) + cross_entropy(image_aug, image)) / 2
    of_texts = (cross_entropy(text, text_aug) + cross_entropy(text_aug, text)) / 2
    out = call(losses.get("cleanclip", clip_weight=0.5, inmodal_weight=3.0, symmetric=True), VIEWS)
    expected = 0.5 * clip + 3.0 * (of_images + of_texts) / 2
    np.testing.assert_allclose(out.value, expected, rtol=1e-6)


def test_in_modal_terms_go_from_originals_to_augmented():
    out = call(losses.get("cleanclip"), VIEWS)
    for modality in ("image", "text"):
        np.testing.assert_allclose(
            out.metrics[f"inmodal_{modality}"],
            cross_entropy(VIEWS[modality], VIEWS[f"{modality}_aug"]),
            rtol=1e-6,
        )


def test_without_in_modal_weight_it_is_clip():
    control = call(losses.get("clip"), {view: VIEWS[view] for view in ("image", "text")})
    out = call(losses.get("cleanclip", inmodal_weight=0.0), VIEWS)
    assert out.value == control.value
    assert out.metrics["clip"] == control.metrics["clip"]

"""TA-Cleaner, PAR, supervised and CleanCLIP's options against references written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax import losses

BATCH, DIM, NEGATIVES, LOG_SCALE = 12, 8, 3, 1.5
SCALE = np.exp(LOG_SCALE)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    names = ("image", "text", "image_aug", "text_aug", "image_ref", "text_ref", "text_pos")
    made = {name: unit(rng, BATCH, DIM) for name in names}
    made["text_neg"] = unit(rng, BATCH, NEGATIVES, DIM)
    made["has_subtext"] = np.arange(BATCH) % 3 == 0
    return made


def call(name, views, **kwargs):
    return losses.get(name, **kwargs)(views, (), log_scale=LOG_SCALE, epoch=1)


def pick(query, positive, negatives):
    """Minus the log of the softmax that the positive gets among the negatives."""
    logits = SCALE * np.array([query @ positive, *(query @ other for other in negatives)])
    return np.log(np.exp(logits).sum()) - logits[0]


def tacleaner_terms(views, positive=True, negative=True):
    image, text = np.float64(views["image"]), np.float64(views["text"])
    rows = np.flatnonzero(views["has_subtext"])
    terms = {"sub_image": [], "sub_positive": [], "sub_text": []}
    for i in rows:
        own = np.float64(views["text_pos"][i]) if positive else text[i]
        false = list(np.float64(views["text_neg"][i])) if negative else []
        others = [text[j] for j in range(BATCH) if j != i]
        terms["sub_image"].append(pick(image[i], own, others + false))
        images = [image[j] for j in range(BATCH) if j != i]
        terms["sub_positive"].append(pick(own, image[i], images))
        terms["sub_text"].append(pick(text[i], own, false))
    left_out = [*["sub_positive"] * (not positive), *["sub_text"] * (not negative)]
    return {name: np.mean(x) for name, x in terms.items() if name not in left_out}


@pytest.mark.parametrize(("positive", "negative"), [(True, True), (True, False), (False, True)])
def test_tacleaner_equals_the_sum_written_out(views, positive, negative):
    expected = tacleaner_terms(views, positive, negative)
    out = call("tacleaner", views, beta=2.0, positive=positive, negative=negative)
    for name, term in expected.items():
        np.testing.assert_allclose(out.metrics[name], term, rtol=1e-5)
    cleanclip = call("cleanclip", views)
    total = cleanclip.value + 2.0 * sum(expected.values()) / 3
    np.testing.assert_allclose(out.value, total, rtol=1e-5)
    assert out.metrics["subtext_rows"] == 4


def test_tacleaner_without_subcaptions_is_cleanclip(views):
    cleanclip = call("cleanclip", views).value
    neither = losses.get("tacleaner", positive=False, negative=False)
    assert neither.views == ("image", "text", "image_aug", "text_aug")
    assert neither(views, (), log_scale=LOG_SCALE, epoch=1).value == cleanclip
    none = views | {"has_subtext": np.zeros(BATCH, bool)}
    assert call("tacleaner", none).value == cleanclip


def test_rows_without_subcaptions_get_no_gradient_by_them(views):
    def value(text_pos, text_neg):
        return call("tacleaner", views | {"text_pos": text_pos, "text_neg": text_neg}).value

    for gradient in jax.grad(value, (0, 1))(views["text_pos"], views["text_neg"]):
        moved = np.asarray(gradient).reshape(BATCH, -1).any(axis=1)
        np.testing.assert_array_equal(moved, views["has_subtext"])


def test_par_moves_away_until_it_is_far_enough(views):
    near = views | {"image_ref": -views["image"], "text_ref": views["text_ref"]}
    far = np.mean(np.sum((views["text"] - views["text_ref"]) ** 2, axis=1))
    clip = call("clip", views).value
    # Opposite images are at 4, beyond tau; the captions' distance is drawn up.
    np.testing.assert_allclose(call("par", near, tau=3.0).value, clip - far / 2, rtol=1e-5)
    np.testing.assert_allclose(
        call("par", near, tau=4.1, weight=0.25).value, clip - (far + 4) / 4, rtol=1e-5
    )
    np.testing.assert_allclose(call("par", near, tau=0.1).value, clip, rtol=1e-6)


def test_supervised_is_cross_entropy_of_the_labelled():
    rng = np.random.default_rng(1)
    logits, label = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 3, -1, 1, 2, -1])
    out = call("supervised", {"logits": logits, "label": label})
    has = label >= 0
    log_p = logits - np.log(np.exp(np.float64(logits)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(out.value, -np.mean(log_p[has, label[has]]), rtol=1e-6)
    right = logits.argmax(axis=1) == label
    np.testing.assert_allclose(out.metrics["accuracy"], right[has].mean(), rtol=1e-6)
    unlabelled = {"logits": jnp.asarray(logits), "label": -np.ones(6, int)}
    assert call("supervised", unlabelled).value == 0


@pytest.mark.parametrize("flagged", [False, True])
def test_pairs_taken_out_are_not_there_and_are_unlearnt(views, flagged):
    cosine = np.sum(views["image"] * views["text"], axis=1)
    out = np.zeros(BATCH, bool)
    out[np.argsort(cosine)[-2:]] = True  # 20% of 12, rounded down.
    if flagged:
        out[[1, 5]] = True
    kept = {name: views[name][~out] for name in ("image", "text", "image_aug", "text_aug")}
    alone = call("cleanclip", kept, inmodal_weight=2.0).value
    result = call(
        "cleanclip",
        views | {"is_flagged": np.isin(np.arange(BATCH), [1, 5])},
        inmodal_weight=2.0,
        progressive=0.2,
        flagged=flagged,
        unlearn=0.5,
        unlearn_target=0.3,
    )
    expected = alone + 0.5 * np.mean((cosine[out] + 0.3) ** 2)
    np.testing.assert_allclose(result.value, expected, rtol=1e-5)
    np.testing.assert_allclose(result.metrics["kept"], np.mean(~out), rtol=1e-6)

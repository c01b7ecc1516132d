import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax import sharding
from clipdef_jax.errors import UserError
from clipdef_jax.evaluate import zero_shot


@dataclasses.dataclass(frozen=True)
class TinyClip:
    """Linear towers; `traces` counts how often each is compiled."""

    name: str = ""
    traces: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def preprocess(self, images):
        return images.astype(jnp.float32) / 255

    def encode_image(self, params, pixels):
        self.traces.append("image")
        return pixels.reshape(len(pixels), -1) @ params["image"]

    def encode_text(self, params, tokens):
        self.traces.append("text")
        return params["text"][tokens].sum(axis=1)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((48, 6)), rng.standard_normal((128, 6))
    return {"image": jnp.float32(image), "text": jnp.float32(text)}


def tokenize(texts):
    codes = [[ord(letter) % 128 for letter in text.ljust(40)] for text in texts]
    return np.array(codes, np.int32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def random_problem(images=500, classes=12, seed=0):
    rng = np.random.default_rng(seed)
    features = unit(rng.standard_normal((images, 8))).astype(np.float32)
    weights = unit(rng.standard_normal((classes, 8))).astype(np.float32)
    return features, rng.integers(0, classes, images), weights


def batches(images, labels, size):
    for start in range(0, len(images), size):
        here = images[start : start + size]
        missing = size - len(here)
        yield {
            "image": np.concatenate([here, np.full((missing, *here.shape[1:]), 9, np.uint8)]),
            "label": np.concatenate([labels[start : start + size], np.full(missing, 5)]),
            "mask": np.arange(size) < len(here),
        }


def test_classifier_is_the_mean_over_templates_of_unit_rows(params):
    classes, templates = ["fox", "egg", "old key"], ["a {}.", "the {}", "see a {} here"]
    sentences = [
        ["a fox.", "the fox", "see a fox here"],
        ["an egg.", "the egg", "see an egg here"],
        ["an old key.", "the old key", "see an old key here"],
    ]
    table = np.asarray(params["text"], np.float64)
    expected = []
    for about_class in sentences:
        rows = [unit(table[tokenize([text])[0]].sum(axis=0)) for text in about_class]
        expected.append(unit(np.mean(rows, axis=0)))
    clip = TinyClip()
    for size in (256, 4, 1):
        weights = zero_shot.classifier(clip, params, tokenize, classes, templates, batch_size=size)
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_embeddings_are_unit_rows_without_padding_compiled_once(params):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(-1, 3, 21)
    clip = TinyClip("nothing else is compiled under this name")
    features, out_labels = zero_shot.embed(clip, params, batches(images, labels, 8))
    expected = unit(images.reshape(21, -1) / 255 @ np.asarray(params["image"], np.float64))
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_array_equal(out_labels, labels)
    assert features.dtype == np.float32
    zero_shot.embed(clip, params, batches(images[:5], labels[:5], 8))
    assert clip.traces == ["image"]


def test_eight_devices_equal_one(params):
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (21, 4, 4, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, 21)
    everywhere = jax.device_put(params, sharding.replicated(mesh))
    for size in (8, 6):  # 6 rows are padded to 8.
        one, _ = zero_shot.embed(TinyClip(), params, batches(images, labels, size))
        eight, sharded_labels = zero_shot.embed(
            TinyClip(), everywhere, batches(images, labels, size), mesh=mesh
        )
        np.testing.assert_allclose(one, eight, atol=1e-6)
        np.testing.assert_array_equal(sharded_labels, labels)
    names, templates = ["fox", "egg", "ship"], ["a {}", "the {}", "no {}"]
    one = zero_shot.classifier(TinyClip(), params, tokenize, names, templates, batch_size=4)
    eight = zero_shot.classifier(
        TinyClip(), everywhere, tokenize, names, templates, batch_size=4, mesh=mesh
    )
    np.testing.assert_allclose(one, eight, atol=1e-6)


def test_no_image_and_no_class_are_user_errors(params):
    with pytest.raises(UserError, match="no readable image"):
        zero_shot.embed(TinyClip(), params, [])
    empty = batches(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1), 8)
    with pytest.raises(UserError, match="no readable image"):
        zero_shot.embed(TinyClip(), params, ({**b, "mask": np.zeros(8, bool)} for b in empty))
    with pytest.raises(UserError, match="names no classes"):
        zero_shot.classifier(TinyClip(), params, tokenize, [], ["a {}"])


def test_ranks_equal_a_sort_in_any_block_size():
    features, wanted, weights = random_problem()
    logits = features.astype(np.float64) @ weights.T.astype(np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = np.argmax(order == wanted[:, None], axis=1)
    for block in (4096, 64, 7):
        result = zero_shot.ranks(features, wanted, weights, block=block)
        np.testing.assert_array_equal(result, expected)


def test_ties_go_by_index_and_do_not_flatter():
    weights = np.ones((6, 1), np.float32)
    features = np.ones((6, 1), np.float32)
    np.testing.assert_array_equal(
        zero_shot.ranks(features, np.arange(6), weights), [0, 1, 2, 3, 4, 5]
    )
    # A collapsed model: one class right out of six, not all of them.
    metrics = zero_shot.evaluate(features, np.arange(6), weights, "abcdef")
    assert metrics["clean_top1"] == pytest.approx(1 / 6)
    assert metrics["clean_top3"] == pytest.approx(3 / 6)


def test_a_nan_counts_as_wrong():
    weights = np.eye(3, dtype=np.float32)
    broken = np.array([[np.nan, 1, 1], [1, 1, 1]], np.float32)
    np.testing.assert_array_equal(zero_shot.ranks(broken, np.zeros(2, int), weights), [3, 0])
    weights[2] = np.nan
    np.testing.assert_array_equal(zero_shot.ranks(broken[1:], np.zeros(1, int), weights), [1])
    metrics = zero_shot.attack_success(np.full((4, 3), np.nan), np.ones(4), np.eye(3), target=0)
    assert metrics["asr_top1"] == metrics["asr_top10"] == 0


def test_accuracy_at_k_and_per_class_against_counting():
    features, labels, weights = random_problem()
    labels[:50] = -1
    labels[labels == 4] = 5
    names = [f"class {index}" for index in range(12)]
    metrics = zero_shot.evaluate(features, labels, weights, names)
    logits = features @ weights.T
    for k in (1, 3, 5, 10):
        best = np.argsort(-logits[50:], axis=1)[:, :k]
        hits = [label in row for label, row in zip(labels[50:], best, strict=True)]
        assert metrics[f"clean_top{k}"] == pytest.approx(np.mean(hits))
    assert metrics["clean_images"] == 450
    for index, row in enumerate(metrics["per_class"]):
        mine = labels == index
        assert row["class"] == names[index]
        assert row["images"] == mine.sum()
        if index == 4:
            assert row["top1"] is None
        else:
            assert row["top1"] == pytest.approx((logits[mine].argmax(axis=1) == index).mean())


def test_k_is_capped_by_the_number_of_classes():
    features, labels, weights = random_problem(classes=4)
    metrics = zero_shot.evaluate(features, labels, weights, "abcd")
    assert metrics["clean_top3"] < 1
    assert metrics["clean_top5"] == metrics["clean_top10"] == 1


def test_attack_success_in_both_conventions():
    weights = np.eye(4, dtype=np.float32)
    # Taken for: target 2 four times, 0 once, and for 1 with the target second.
    features = np.eye(4, dtype=np.float32)[[2, 2, 2, 2, 0, 1]]
    features[5, 2] = 0.5
    labels = np.array([2, 2, 0, 1, 0, 1])
    left_out = zero_shot.attack_success(features, labels, weights, target=2)
    assert left_out["asr_mode"] == "exclude_target"
    assert left_out["asr_images"] == 4
    assert left_out["asr_top1"] == 2 / 4
    assert left_out["asr_top3"] == 4 / 4
    every = zero_shot.attack_success(features, labels, weights, target=2, mode="all")
    assert every["asr_mode"] == "all"
    assert every["asr_images"] == 6
    assert every["asr_top1"] == pytest.approx(4 / 6)
    assert set(every) == {"asr_mode", "asr_images", *(f"asr_top{k}" for k in (1, 3, 5, 10))}


def test_targeted_success_is_the_share_near_the_adversarial_class():
    weights = np.eye(3, dtype=np.float32)
    features = weights[[1, 1, 0, 2]]
    success = zero_shot.targeted_success(features, weights, 1)
    assert success["psr_top1"] == 0.5
    assert success["psr_top3"] == success["psr_top10"] == 1  # There are three classes.
    with pytest.raises(UserError, match="no chosen image"):
        zero_shot.targeted_success(features[:0], weights, 1)


def test_bad_input_is_named():
    features, labels, weights = random_problem(classes=4)
    with pytest.raises(UserError, match="no test image has a label"):
        zero_shot.evaluate(features, np.full(500, -1), weights, "abcd")
    with pytest.raises(UserError, match="label 3 is none of the 3 classes"):
        zero_shot.evaluate(features, labels, weights[:3], "abc")
    with pytest.raises(UserError, match="ASR mode is 'every', expected one of exclude_target, all"):
        zero_shot.attack_success(features, labels, weights, 0, mode="every")
    with pytest.raises(UserError, match="every test image is of the target class"):
        zero_shot.attack_success(features, np.zeros(500), weights, 0)

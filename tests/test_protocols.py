"""Whole data sets against batches, draws and themselves: what is held against what."""

import numpy as np
import pytest

from clipdef_jax import detect
from clipdef_jax.detect.scores import BY_NEIGHBOURS
from clipdef_jax.errors import UserError

COUNT, DIM, K = 256, 16, 4
# Of a draw or a batch; the last batch is not full.
SIZE = 96
RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, COUNT, DIM)).astype(np.float32)


def score_all(*arguments, methods=("slof",), **options):
    defaults = {"k": K, "size": COUNT, "poison_rate": 0.0}
    return detect.score_all(*arguments, methods=methods, **defaults | options)


def assert_alike(found, expected):
    assert list(found) == list(expected)
    for method, values in expected.items():
        assert found[method].dtype == np.float32
        np.testing.assert_allclose(found[method], values, 1e-4, 1e-4, err_msg=method)


def test_with_all_pairs_in_the_reference_the_protocols_agree():
    """And with `score`: so own images and captions are left out of draws as of batches."""
    expected = {
        method: detect.score(IMAGE, TEXT, method=method, k=K) for method in detect.FROM_EMBEDDINGS
    }
    assert_alike(score_all(IMAGE, TEXT, methods=list(expected), draws=2), expected)
    expected = {method: expected[method] for method in BY_NEIGHBOURS}
    for reference in ("full", "batch"):
        found = score_all(IMAGE, TEXT, methods=BY_NEIGHBOURS, reference=reference)
        assert_alike(found, expected)


def test_captions_are_scored_as_images_are():
    found = {
        query: score_all(IMAGE, TEXT, reference="full", query=query, methods=("kdist", "lid"))
        for query in ("image", "caption", "both")
    }
    swapped = score_all(TEXT, IMAGE, reference="full", methods=("kdist", "lid"))
    assert_alike(found["caption"], swapped)
    for method, values in found["both"].items():
        one, other = found["image"][method], found["caption"][method]
        np.testing.assert_array_equal(values, np.maximum(one, other))
    drawn = score_all(IMAGE, TEXT, draws=1, query="both", methods=("kdist", "lid"))
    assert_alike(drawn, found["both"])


def test_poisons_hide_behind_one_another_unless_the_reference_is_small():
    rng = np.random.default_rng(1)
    image = IMAGE.copy()
    poisons = [3, 60, 117, 200, 255]
    image[poisons] = 4 + 0.1 * rng.normal(size=(5, DIM))

    def found(**options):
        scores = score_all(image, methods=("kdist",), **options)["kdist"]
        return set(np.argsort(-scores)[:5]) & set(poisons)

    # Each has four others, as many as k; in a sample of 96 pairs there are two, on average.
    assert not found(reference="full")
    assert found(size=SIZE) == set(poisons)
    assert found(reference="batch", size=SIZE) == set(poisons)


@pytest.mark.parametrize("reference", ["batch", "subsample"])
def test_every_pair_is_scored_and_the_seed_decides_against_what(reference):
    steps = []
    options = {"reference": reference, "size": SIZE, "draws": 2}
    first = score_all(IMAGE, **options, progress=lambda *step: steps.append(step))["slof"]
    again = score_all(IMAGE, **options)["slof"]
    other = score_all(IMAGE, **options, seed=1)["slof"]
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    # The last batch of 64 is filled up; each pair is scored in one batch only.
    assert np.mean(first != other) > 0.9
    total = {"batch": 3, "subsample": 2}[reference]
    assert steps == [(done, total) for done in range(1, total + 1)]


def test_a_batch_is_its_own_reference():
    found = score_all(IMAGE, reference="batch", size=SIZE, methods=("kdist",), seed=5)["kdist"]
    distances = np.linalg.norm(IMAGE[:, None] - IMAGE[None], axis=-1)
    order = np.random.default_rng(5).permutation(COUNT)
    # The last batch is filled up from the first.
    for start in range(0, COUNT, SIZE):
        batch = np.roll(order, -start)[:SIZE]
        own = np.sort(distances[np.ix_(batch, batch)], axis=1)[:, K]
        new = COUNT - start
        np.testing.assert_allclose(found[batch[:new]], own[:new], 1e-5)


def test_draws_are_averaged():
    """The k-th distances in two draws add up to twice the score."""
    both = score_all(IMAGE, size=SIZE, draws=2, methods=("kdist",), seed=3)["kdist"]
    rng = np.random.default_rng(3)
    distances = np.linalg.norm(IMAGE[:, None] - IMAGE[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    each = []
    for _ in range(2):
        drawn = rng.choice(COUNT, SIZE, replace=False)
        each.append(np.sort(distances[:, drawn], axis=1)[:, K - 1])
    np.testing.assert_allclose(both, np.mean(each, axis=0), 1e-5)


def test_the_search_is_timed():
    for reference in ("subsample", "batch"):
        seconds = {}
        score_all(IMAGE, methods=("kdist",), size=SIZE, reference=reference, seconds=seconds)
        assert seconds["knn"] > 0
    seconds = {}
    score_all(IMAGE, TEXT, methods=("clip_score",), seconds=seconds)
    assert seconds == {}


def test_embeddings_stay_where_they_are(tmp_path):
    """Memory-mapped, in half precision, read in blocks: the same scores."""
    half = IMAGE.astype(np.float16), TEXT.astype(np.float16)
    mapped = []
    for name, array in zip(("image", "text"), half, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    options = {"methods": (*BY_NEIGHBOURS, "clip_score"), "draws": 1}
    expected = score_all(*(x.astype(np.float32) for x in half), **options)
    steps = []
    found = score_all(
        *mapped, **options, memory=64 * COUNT, progress=lambda *step: steps.append(step)
    )
    assert_alike(found, expected)
    assert steps[-1] == (4, 4)


def test_normalised_rows_have_no_length():
    length = RNG.uniform(0.1, 10, (COUNT, 1)).astype(np.float32)
    unit = IMAGE / np.linalg.norm(IMAGE, axis=1, keepdims=True)
    expected = score_all(unit, reference="full")
    assert_alike(score_all(length * IMAGE, reference="full", normalise=True), expected)


def test_warns_of_a_reference_too_large_for_k():
    with pytest.warns(UserWarning, match=r"k=4 is not above the 5.12 poisoned points.* larger k"):
        score_all(IMAGE, poison_rate=0.02)
    with pytest.warns(UserWarning, match=r"k=4 is not above the 5.12 poisoned points"):
        score_all(IMAGE, TEXT, poison_rate=0.01)
    score_all(IMAGE, poison_rate=0.01)


def bad(row):
    image = IMAGE.copy()
    image[row, 3] = np.inf
    return image


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGE,), {"methods": ["slof", "abl"]}, r"method='abl': expected one of kdist"),
        ((IMAGE,), {"reference": "all"}, r"reference='all': expected one of batch, subsample"),
        ((IMAGE,), {"query": "text"}, r"query='text': expected one of image, caption, both"),
        ((IMAGE,), {"query": "both"}, r"query='both', .* need captions; pass text="),
        ((IMAGE,), {"methods": ["clip_score"]}, r"need captions"),
        ((IMAGE,), {"draws": 0}, r"draws=0: expected 1 or more"),
        ((IMAGE,), {"size": 4}, r"k=4: expected 1 to 3"),
        ((IMAGE[:4],), {"reference": "full"}, r"k=4: expected 1 to 3"),
        ((IMAGE, TEXT[1:]), {}, r"\(256, 16\), text embeddings \(255, 16\)"),
        ((IMAGE, TEXT[:, :, None]), {}, r"text embeddings are \(256, 16, 1\), expected \(pairs"),
        ((bad(77),), {}, r"image embedding 77 is not finite; leave out"),
        ((IMAGE, bad(78)), {"reference": "full"}, r"text embedding 78 is not finite"),
        ((IMAGE, bad(79)), {"methods": ["clip_score"]}, r"text embedding 79 is not finite"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(UserError, match=message):
        score_all(*arguments, **options)

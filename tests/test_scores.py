"""The detectors: golden values, the formulas written out, and points where ratios have no value."""

import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax import detect
from clipdef_jax.detect import scores
from clipdef_jax.errors import UserError

NAMES = {"kdist": "kdist", "slof": "slof", "lid": "lid", "dao_log": "dao_log", "dao": "dao_power"}


# One shape and one k for most tests: each is a program to compile.
K = 8


def points():
    return np.random.default_rng(0).normal(size=(777, 64)).astype(np.float32)


def rank_correlation(a, b):
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize(("name", "reference"), [("512x32", "pair"), ("777x64_unit", "image")])
def test_equals_the_golden_values(golden, name, reference):
    values = np.load(golden / f"detector_{name}.npz")
    text = values["text"] if reference == "pair" else None
    for method, column in NAMES.items():
        ours = detect.score(values["image"], text, method=method, k=int(values["k"]))
        assert ours.dtype == np.float32
        # The golden value of "dao" is not the logarithm.
        ours = np.exp(ours.astype(np.float64)) if method == "dao" else ours
        # A logarithm near 0 has the error of the sum it came from.
        atol = 2e-5 if method == "dao_log" else 0
        np.testing.assert_allclose(ours, values[f"{reference}/exact/{column}"], 1e-4, atol)
        if method == "kdist":
            assert rank_correlation(ours, values[f"{reference}/author/{method}"]) >= 0.98


def test_equals_the_released_code_once_its_faults_are_put_in(golden):
    values = np.load(golden / "detector_777x64_unit.npz")
    image, own = values["image"], np.arange(777)[:, None]
    distances, ids = detect.knn(image, image, K + 1, exclude=own)
    np.testing.assert_allclose(distances[:, K], values["image/author/kdist"], 1e-5)
    density = scores.Density(distances[:, K - 1], np.zeros(777))
    # One neighbour too far above the line; below it, columns of a matrix without its diagonal.
    faulty = scores.Neighbourhood(distances, ids[:, :K] - (ids[:, :K] > own), density)
    np.testing.assert_allclose(
        scores.by_neighbours("slof", faulty), values["image/author/slof"], 1e-5
    )


def test_formulas():
    """Of two queries among three points, term by term."""
    density = scores.Density(np.array([1.0, 2.0, 4.0]), np.array([3.0, 1.0, 2.0]))
    distances = np.array([[1.0, 2.0], [2.0, 8.0]], np.float32)
    hood = scores.Neighbourhood(distances, np.array([[0, 1], [2, 0]]), density)
    np.testing.assert_allclose(scores.by_neighbours("kdist", hood), [2, 8])
    np.testing.assert_allclose(scores.by_neighbours("slof", hood), [1.5, 5])
    lid = [-2 / np.log(1 / 2), -2 / np.log(2 / 8)]
    np.testing.assert_allclose(scores.by_neighbours("lid", hood), lid, 1e-6)
    power = np.log([(2**3 + 1**1) / 2, (2**2 + 8**3) / 2])
    np.testing.assert_allclose(scores.by_neighbours("dao", hood), power, 1e-6)
    logarithm = [3 * np.log(2) / 2, (2 * np.log(2) + 3 * np.log(8)) / 2]
    np.testing.assert_allclose(scores.by_neighbours("dao_log", hood), logarithm, 1e-6)


def test_coinciding_points_have_scores():
    image = points()
    image[:20] = image[0]  # More than k: their distances are all 0.
    image[20] = image[0] + 1e-6  # All its neighbours have distance 0 to theirs.
    ours = {method: detect.score(image, method=method, k=K) for method in scores.BY_NEIGHBOURS}
    assert all(np.isfinite(values).all() for values in ours.values())
    for method, expected in (("kdist", 0), ("slof", 1), ("lid", 0), ("dao", 0), ("dao_log", 0)):
        np.testing.assert_array_equal(ours[method][:20], expected, method)
    assert ours["slof"][20] == 2.0**20
    # Its neighbours have no dimension: a ratio to the power 0.
    assert ours["dao"][20] == 0


def test_the_power_does_not_overflow():
    density = scores.Density(np.full(4, 1e-30), np.full(4, 4096.0))
    hood = scores.Neighbourhood(np.full((2, 4), 1e10), np.tile(np.arange(4), (2, 1)), density)
    np.testing.assert_allclose(scores.by_neighbours("dao", hood), 4096 * 20 * np.log(2), 1e-6)


def test_an_outlier_is_most_suspect():
    image = points()
    image[100] *= 4
    for method in (*scores.BY_NEIGHBOURS, "iforest"):
        if method != "lid":
            assert np.argmax(detect.score(image, method=method, k=K)) == 100, method


def test_clip_score_is_minus_the_cosine():
    image = np.array([[3, 4], [1, 0], [0, 0]], np.float16)
    text = np.array([[4, 3], [-2, 0], [1, 1]], np.float32)
    ours = detect.score(image, text, method="clip_score")
    np.testing.assert_allclose(ours, [-24 / 25, 1, 0], 1e-6)


def test_isolation_forest_is_that_of_scikit_learn():
    from sklearn.ensemble import IsolationForest

    image = points()
    ours = detect.score(image, method="iforest", seed=3)
    forest = IsolationForest(random_state=3).fit(image)
    np.testing.assert_allclose(ours, -forest.score_samples(image), 1e-6)


def test_abl_takes_the_first_epochs():
    losses = np.ones((12, 3))
    losses[:10, 1] = 0.5
    losses[10:, 2] = 0.0
    ours = detect.score(np.zeros((3, 2)), method="abl", losses=losses)
    np.testing.assert_allclose(ours, [-1, -0.5, -1])
    np.testing.assert_allclose(detect.score(np.zeros((3, 2)), method="abl", losses=losses[0]), ours)


def test_cd_needs_little_of_a_poisoned_picture():
    pixels = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)

    def encode(images):
        # The first picture is known by its corner, the second by all of it.
        corner = images[:1, :2, :2].reshape(1, 12)
        whole = images[1:].reshape(1, 4, 2, 4, 2, 3).mean((2, 4))[:, :2, :2].reshape(1, 12)
        return 10 * jnp.concatenate([corner, whole])

    ours = detect.score(pixels, method="cd", encode=encode)
    assert ours[0] > ours[1]


def bad(row, value):
    image = points()
    image[row, 3] = value
    return image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dbscan"}, r"detector 'dbscan': expected one of kdist, slof"),
        ({"image": bad(7, np.nan)}, r"image embeddings: 1 of 777 rows .* the first is row 7"),
        ({"image": bad(8, -np.inf)}, r"the first is row 8"),
        ({"text": bad(9, np.nan)}, r"text embeddings: 1 of 777 rows .* row 9"),
        ({"text": points()[:-1]}, r"\(777, 64\), text embeddings \(776, 64\)"),
        ({"image": points()[0]}, r"\(64,\), expected \(pairs, dimensions\)"),
        ({"image": points()[:0]}, r"\(0, 64\), expected"),
        ({"image": points()[:16]}, r"k=16: expected 1 to 15, .* give more pairs"),
        ({"image": points()[:3], "text": points()[:3], "k": 5}, r"k=5: expected 1 to 4"),
        ({"image": points()[:1], "k": 1}, r"k=1: expected 1 to 0"),
        ({"k": 0}, r"k=0: expected 1 to 255"),
        ({"method": "lid", "k": 1}, r"detector 'lid' with k=1: expected 2 to"),
        ({"method": "clip_score"}, r"'clip_score' compares .* pass text="),
        ({"method": "cd"}, r"pass encode="),
        ({"method": "abl"}, r"pass losses="),
        ({"method": "abl", "losses": np.ones((2, 3))}, r"\(2, 3\), expected \(epochs, 777\)"),
        ({"method": "abl", "losses": np.full(777, np.nan)}, r"losses of pairs: 777 of 777"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        detect.score(**{"image": points(), "method": "slof"} | arguments)


def test_a_point_too_large_to_be_squared_is_named():
    with pytest.raises(UserError, match=r"embedding 5 of 777 has 0 neighbours of 8"):
        detect.score(bad(5, 1e30), method="kdist", k=K)

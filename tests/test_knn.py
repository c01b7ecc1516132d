"""Exact neighbours, against all distances in float64."""

import numpy as np
import pytest

from clipdef_jax import detect


def brute_force(queries, reference, k, exclude=None):
    difference = queries[:, None].astype(np.float64) - reference[None].astype(np.float64)
    distances = np.sqrt((difference**2).sum(-1))
    for row, left_out in enumerate(exclude if exclude is not None else ()):
        distances[row, [i for i in left_out if i >= 0]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


@pytest.mark.parametrize(("count", "dim", "k"), [(300, 8, 1), (517, 32, 16)])
def test_equals_all_distances(count, dim, k):
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(65, dim)).astype(np.float32)
    reference = rng.normal(size=(count, dim)).astype(np.float32)
    distances, ids = detect.knn(queries, reference, k)
    expected, order = brute_force(queries, reference, k)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def test_a_point_is_left_out_by_its_id_and_its_duplicate_is_found():
    points = np.random.default_rng(1).normal(size=(120, 16)).astype(np.float32)
    points[7] = points[3]
    own = np.arange(120)[:, None]
    distances, ids = detect.knn(points, points, 4, exclude=own)
    expected, order = brute_force(points, points, 4, own)
    np.testing.assert_array_equal(ids, order)
    assert (ids[3, 0], distances[3, 0]) == (7, 0.0)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)

"""Exact neighbours, against all distances in float64."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from clipdef_jax import detect
from clipdef_jax.detect import layout
from clipdef_jax.errors import UserError


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


def test_the_queries_in_doubt_share_one_program_however_many_they_are():
    sizes = layout.Sizes(3, 4096, 64, 16, 2, devices=1, memory=2**26)
    for make_layout in (layout.for_second_search, layout.for_exhaustive_search):
        assert make_layout(sizes) == make_layout(sizes._replace(queries=9000))


def test_a_mesh_of_one_device_may_be_entered():
    points = np.random.default_rng(2).normal(size=(120, 16)).astype(np.float32)
    mesh = jax.make_mesh((1, 1), ("a", "b"), (AxisType.Auto,) * 2, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        distances, ids = detect.knn(points, points, 4)
    expected, order = brute_force(points, points, 4)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=1e-6)


def test_a_point_is_left_out_by_its_id_and_its_duplicate_is_found():
    points = np.random.default_rng(1).normal(size=(120, 16)).astype(np.float32)
    points[7] = points[3]
    own = np.arange(120)[:, None]
    distances, ids = detect.knn(points, points, 4, exclude=own)
    expected, order = brute_force(points, points, 4, own)
    np.testing.assert_array_equal(ids, order)
    assert (ids[3, 0], distances[3, 0]) == (7, 0.0)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def with_copies_and_clusters():
    """Points that bounds on rounding cannot tell apart, beside those that they can."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(700, 8)).astype(np.float32)
    points[100:140] = points[100]
    points[300:340] = 30 + 1e-4 * points[300:340]
    points[500] *= 1e4
    return points


def test_panels_and_rounded_products_do_not_change_the_result():
    points, own = with_copies_and_clusters(), np.arange(700)[:, None]
    expected, order = brute_force(points, points, 5, own)
    steps = []
    # Room for a panel of some of the points only.
    distances, ids = detect.knn(
        points,
        points,
        5,
        exclude=own,
        memory=2**16,
        products="bfloat16",
        progress=lambda *step: steps.append(step),
    )
    np.testing.assert_array_equal(ids[:300], order[:300])
    np.testing.assert_allclose(distances, expected, rtol=2e-6)
    # By id among equals: all copies but itself.
    np.testing.assert_array_equal(ids[103], [100, 101, 102, 104, 105])
    assert steps[-1][0] == steps[-1][1] == len(steps) > 3


def test_eight_devices_find_what_one_does():
    points = np.random.default_rng(4).normal(size=(700, 8)).astype(np.float32)
    points[400] = points[20]  # On different devices, and of one distance to all.
    own = np.arange(700)[:, None]
    alone = detect.knn(points, points, 5, exclude=own)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    with jax.set_mesh(mesh):
        together = detect.knn(points, points, 5, exclude=own)
    for one, eight in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, eight)


def test_rows_that_are_no_points_have_no_neighbours_and_are_nobodys():
    points = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
    bad = [2, 50, 299]
    points[bad] = [[np.nan] * 8, [np.inf] * 8, [1e30] * 8]
    queries = points[:65]
    distances, ids = detect.knn(queries, points, 1)
    is_bad = np.isin(np.arange(65), bad)
    assert (ids[is_bad] == -1).all()
    assert np.isinf(distances[is_bad]).all()
    np.testing.assert_array_equal(ids[~is_bad, 0], np.flatnonzero(~is_bad))


def test_fewer_neighbours_than_asked_for_end_in_none():
    points = np.arange(12, dtype=np.float32).reshape(6, 2)
    exclude = np.array([[0, 1], [1, -1]])
    distances, ids = detect.knn(points[:2], points, 6, exclude=exclude)
    np.testing.assert_array_equal(ids, [[2, 3, 4, 5, -1, -1], [0, 2, 3, 4, 5, -1]])
    np.testing.assert_array_equal(np.isinf(distances), ids < 0)


@pytest.mark.parametrize(
    ("queries", "reference", "k", "options", "message"),
    [
        ((4, 3), (9, 2), 1, {}, r"queries have 3 dimensions, the reference 2"),
        ((4, 3), (0, 3), 1, {}, r"reference: expected .*\(0, 3\)"),
        ((4,), (9, 3), 1, {}, r"queries: expected an array \(rows, dimensions\), got \(4,\)"),
        ((4, 3), (9, 3), 10, {}, r"k=10: expected 1 to 9"),
        ((4, 3), (999, 3), 300, {}, r"k=300: expected 1 to 256"),
        ((4, 3), (9, 3), 1, {"products": "int8"}, r"'int8': expected one of float32"),
        ((4, 3), (9, 3), 1, {"exclude": np.zeros((3, 1), int)}, r"expected integers \(4, E\)"),
    ],
)
def test_mistakes_are_named(queries, reference, k, options, message):
    with pytest.raises(UserError, match=message):
        detect.knn(np.zeros(queries, np.float32), np.zeros(reference, np.float32), k, **options)

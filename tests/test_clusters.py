"""Groups of suspects."""

import numpy as np

from clipdef_jax.detect import clusters


def test_captions_repeat_but_for_case_and_white_space():
    rows = np.array([70, 50, 30, 10, 90, 20])
    captions = ["A  Banana", "a dog", "a banana", "", "a banana ", ""]
    (group,) = clusters.by_caption(rows, captions)
    assert group.rows.tolist() == [70, 30, 90]
    assert group.name == "A  Banana"


def test_groups_come_the_largest_first():
    groups = clusters.by_caption(np.arange(5), ["a", "b", "b", "a", "b"])
    assert [group.rows.tolist() for group in groups] == [[1, 2, 4], [0, 3]]


def test_pictures_are_alike_by_what_they_do_not_share_with_all():
    rng = np.random.default_rng(0)
    cone = 10 * np.ones(32)
    cakes, dogs = rng.normal(size=(2, 32))
    kinds = [cakes] * 6 + [dogs] * 3 + list(rng.normal(size=(8, 32)))
    image = np.stack(kinds) + cone + 0.05 * rng.normal(size=(17, 32))
    order = rng.permutation(17)
    rows = order + 100
    captions = [f"picture {place}" for place in order]
    first, second = clusters.by_image(rows, image[order], cone, captions)
    assert sorted(first.rows) == list(range(100, 106))
    assert sorted(second.rows) == list(range(106, 109))
    # Within a group the order is the suspects' own, and its first one names it.
    assert first.rows.tolist() == [row for row in rows if row < 106]
    assert first.name == f"picture {first.rows[0] - 100}"
    # Without the average taken off, all point the same way.
    (everything,) = clusters.by_image(rows, image[order], np.zeros(32), captions)
    assert len(everything.rows) == 17


def test_a_chain_is_not_one_group():
    angles = np.deg2rad(20) * np.arange(8)
    image = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    groups = clusters.by_image(np.arange(8), image, np.zeros(2), [""] * 8)
    assert max(len(group.rows) for group in groups) == 3


def test_zero_features_and_no_suspects():
    assert clusters.by_image(np.arange(3), np.zeros((3, 4)), np.zeros(4), [""] * 3) == []
    assert clusters.by_image(np.arange(0), np.zeros((0, 4)), np.zeros(4), []) == []
    assert clusters.by_caption(np.arange(0), []) == []

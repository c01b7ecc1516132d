"""What is shown of a run: which test images, and the words for an attack."""

import numpy as np

from clipdef_jax import data, outcome, parts


def test_shown_images_are_spread_over_the_test_set():
    source = data.open("emoji:test", size=100)
    indices = outcome.shown(parts.TestSet(source, None, None))
    assert len(indices) == outcome.SHOWN
    assert len(set(indices)) == outcome.SHOWN
    assert {int(indices[0]), int(indices[-1])} == {0, 99}
    few = outcome.shown(parts.TestSet(data.Subset(source, np.arange(3)), None, None))
    assert few.tolist() == [0, 1, 2]
    # Neighbours differ in class: the scenes go round the concepts.
    assert len({source[int(i)].label for i in indices}) > 4

"""The training record: each pair's loss, term by term."""

import numpy as np
import pytest

from clipdef_jax.detect.record import pair_losses


@pytest.mark.parametrize("batch", [4, 5, 50])
def test_equals_the_loss_written_out(batch):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 10, 6)).astype(np.float32)
    found = pair_losses(image, text, 1.5, batch=batch, seed=3)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    order = np.random.default_rng(3).permutation(10)
    batch = min(batch, 10)
    for start in range(0, 10, batch):
        rows = [order[place % 10] for place in range(start, start + batch)]
        for own in rows[: 10 - start]:
            to_text = [np.exp(np.exp(1.5) * unit[0][own] @ unit[1][row]) for row in rows]
            to_image = [np.exp(np.exp(1.5) * unit[0][row] @ unit[1][own]) for row in rows]
            match = np.exp(np.exp(1.5) * unit[0][own] @ unit[1][own])
            expected = -np.log(match / sum(to_text)) / 2 - np.log(match / sum(to_image)) / 2
            assert found[own] == pytest.approx(expected, abs=1e-5)


def test_a_pair_that_is_learnt_has_the_lower_loss():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(40, 16))
    image = text + rng.normal(size=(40, 16)) * np.where(np.arange(40) < 8, 0.1, 5.0)[:, None]
    losses = pair_losses(image, text, 2.0, batch=8)
    assert losses[:8].max() < np.median(losses[8:])
    zero = pair_losses(np.zeros((4, 3)), np.zeros((4, 3)), 2.0, batch=4)
    np.testing.assert_allclose(zero, np.log(4), rtol=1e-6)

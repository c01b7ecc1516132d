"""Cognitive distillation: masks as small as the model allows."""

import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax.detect import cognitive_distillation
from clipdef_jax.errors import UserError

PIXELS = np.random.default_rng(0).random((70, 8, 8, 3)).astype(np.float32)


def blind(pixels):
    return jnp.zeros((len(pixels), 2))


def of_corner(pixels):
    """All that is seen of a picture is its first 4 x 4 pixels."""
    return 10 * pixels[:, :4, :4].reshape(len(pixels), -1)


def test_without_weights_the_mask_stays():
    norms = cognitive_distillation(PIXELS, blind, gamma=0, beta=0, steps=3)
    np.testing.assert_allclose(norms, 64 * (np.tanh(1) + 1) / 2, rtol=1e-6)
    assert norms.dtype == np.float32


def test_the_mask_shrinks_to_what_is_seen():
    norms = cognitive_distillation(PIXELS, of_corner, beta=0, gamma=0.01)
    # 16 of 64 pixels; where a pixel has the colour of its surroundings it need not be kept.
    assert (norms > 8).all()
    assert (norms < 20).all()
    # The last batch, of six, was filled up.
    again = cognitive_distillation(PIXELS, of_corner, beta=0, gamma=0.01)
    np.testing.assert_array_equal(norms, again)


def test_total_variation_makes_masks_smooth():
    """A smooth mask cannot end where the corner does."""
    rough = cognitive_distillation(PIXELS[:4], of_corner, beta=0, gamma=0.01)
    smooth = cognitive_distillation(PIXELS[:4], of_corner, beta=1000, gamma=0.01)
    assert (smooth > rough + 4).all()


def test_colours_come_from_the_seed():
    first, second = (
        cognitive_distillation(PIXELS[:4], of_corner, gamma=0.01, seed=seed, steps=5)
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (PIXELS[0], r"pixels are \(8, 8, 3\), expected \(pictures"),
        (PIXELS[:0], r"\(0, 8, 8, 3\)"),
        (np.where(PIXELS > 0.999, np.nan, PIXELS), r"not finite"),
    ],
)
def test_mistakes_are_named(pixels, message):
    with pytest.raises(UserError, match=message):
        cognitive_distillation(pixels, blind)

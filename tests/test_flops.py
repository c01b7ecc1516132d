"""Operations counted in a program, against a public profile and by hand."""

import jax
import jax.numpy as jnp
import pytest

from clipdef_jax import flops, models

# The profile's ResNet pools from all 50 positions, of which one is used: 49 queries and outputs.
_UNUSED = 49 * 2 * (2048 * 2048 + 2048 * 1024) / 1e9


@pytest.mark.parametrize(
    ("name", "image"), [("RN50", 12.22 - _UNUSED), ("ViT-B/32", 8.82), ("ViT-B/16", 35.13)]
)
def test_counts_what_a_public_profile_counts(name, image):
    """Of the original shapes; the profile's numbers are GFLOP, a multiply-add as two."""
    clip = models.get(name)
    params = jax.eval_shape(clip.init, jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    assert flops.count(clip.encode_image, params, pixels) / 1e9 == pytest.approx(image, rel=0.005)
    text = flops.count(clip.encode_text, params, tokens) / 1e9
    assert text == pytest.approx(5.96, rel=0.005)


def test_counts_inside_loops_branches_and_calls():
    weight = jnp.ones((3, 5))

    def once(x_4x3):
        return (x_4x3 @ weight)[:, :3]

    single = 2 * 4 * 3 * 5
    x = jnp.ones((4, 3))
    assert flops.count(once, x) == single
    assert flops.count(jax.jit(once), x) == single
    assert flops.count(jax.checkpoint(once), x) == single
    looped = flops.count(lambda x: jax.lax.scan(lambda c, _: (once(c), None), x, length=7)[0], x)
    assert looped == 7 * single
    branched = flops.count(lambda x: jax.lax.cond(x[0, 0] > 0, once, lambda x: x, x), x)
    assert branched == single

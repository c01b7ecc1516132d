"""The text transformer: causal, read at the end of the text."""

import functools

import jax
import numpy as np
import pytest

from clipdef_jax import models
from clipdef_jax.errors import UserError

START, END, CONTEXT = 28, 29, 9
FIELDS = {
    "image_size": 8,
    "image_layers": 1,
    "text_width": 16,
    "text_layers": 2,
    "text_heads": 2,
    "embed_dim": 6,
    "vocab_size": 30,
    "context_length": CONTEXT,
}
TOKENS = np.array(
    [
        [START, 5, 6, 7, END, 0, 0, 0, 0],
        [START, 11, END, 0, 0, 0, 0, 0, 0],
        [START, 1, 2, 3, 4, 5, 6, 7, END],
    ],
    np.int32,
)


CLIP = models.get("ViT-Ti/4", **FIELDS)


@pytest.fixture(scope="module")
def params():
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(CLIP.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.3, leaf.shape)), shapes)


@functools.partial(jax.jit, static_argnames="clip")
def encode(params, tokens, clip=CLIP):
    return clip.encode_text(params, tokens)


def test_what_follows_the_end_does_not_count(params):
    padded_with_end = np.where(TOKENS == 0, END, TOKENS)
    np.testing.assert_allclose(
        encode(params, TOKENS), encode(params, padded_with_end), rtol=1e-5, atol=1e-5
    )


def test_every_token_up_to_the_end_counts(params):
    features = encode(params, TOKENS)
    for position in range(4):
        changed = TOKENS.copy()
        changed[0, position] = 20
        difference = np.abs(encode(params, changed) - features).max(axis=1)
        assert difference[0] > 1e-3
        assert difference[1:].max() < 1e-5


def test_a_batch_may_be_cut_to_its_longest_text(params):
    whole, cut = encode(params, TOKENS)[:2], encode(params, TOKENS[:2, :5])
    np.testing.assert_allclose(whole, cut, rtol=1e-5, atol=1e-5)


def test_the_end_is_the_largest_id_or_the_one_that_is_named(params):
    named = models.get("ViT-Ti/4", **FIELDS, eos_token_id=END)
    np.testing.assert_allclose(
        encode(params, TOKENS), encode(params, TOKENS, named), rtol=1e-5, atol=1e-5
    )
    # Ends at the 6 of the third place, though larger ids stand before and after it.
    text = np.array([[START, 5, 6, 7, END, 6, 0, 0, 0]] * 3, np.int32)
    six = models.get("ViT-Ti/4", **FIELDS, eos_token_id=6)
    changed_after = np.where(text == 7, 8, text)
    changed_before = np.where(text == 5, 4, text)
    features = encode(params, text, six)
    np.testing.assert_allclose(features, encode(params, changed_after, six), atol=1e-5)
    assert np.abs(features - encode(params, changed_before, six)).max() > 1e-3
    assert np.abs(features - encode(params, text)).max() > 1e-3


def test_too_many_tokens_are_refused():
    with pytest.raises(UserError, match=r"\(1, 10\), expected \(B, L\) with L at most .* 9"):
        CLIP.encode_text({}, np.zeros((1, 10), np.int32))

"""The CLIP tokenizer: equal to Hugging Face's, total on any text, and picklable."""

import json
import pickle

import numpy as np
import pytest

from clipdef_jax.data import tokenizer
from clipdef_jax.errors import UserError

CAPTIONS = ["a red apple", "the Apple's core, 2 bananas!", "bananas and apples on a table"] * 5


def test_equals_hugging_face(golden):
    expected = np.load(golden / "hf_clip_tiny" / "expected.npz")
    tokens = tokenizer.load(golden / "hf_clip_tiny")(list(expected["captions"]))
    np.testing.assert_array_equal(tokens, expected["input_ids"])


def test_trained_layout_and_round_trip(tmp_path):
    trained = tokenizer.train(CAPTIONS, vocab_size=560, context_length=12)
    assert trained.vocab_size <= 560
    assert trained.eos_token_id == trained.vocab_size - 1
    tokens = trained(["a red apple", ""])
    assert tokens.dtype == np.int32
    assert tokens.shape == (2, 12)
    # One token per frequent word, then padding with the end token.
    np.testing.assert_array_equal(tokens[0, 4:], trained.eos_token_id)
    assert trained.eos_token_id not in tokens[0, :4]
    np.testing.assert_array_equal(tokens[1, 1:], trained.eos_token_id)

    trained.save(tmp_path)
    np.testing.assert_array_equal(tokenizer.load(tmp_path, 12)(CAPTIONS), trained(CAPTIONS))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(trained))(CAPTIONS), trained(CAPTIONS))


def test_training_gives_the_same_tokenizer_every_time():
    # Many words of equal counts: ties are where a trainer may differ from run to run.
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(300)]
    trained = {tokenizer.train(words, vocab_size=700).serialized for _ in range(6)}
    assert len(trained) == 1
    assert tokenizer.train(words, vocab_size=700).vocab_size == 700


def test_unseen_text_is_never_the_end_token():
    trained = tokenizer.train(CAPTIONS, vocab_size=560, context_length=77)
    for caption in ["émoji 🍌 日本語", "\x00\x7f", "ZYXWVUTSRQ", "Ω≈ç√∫"]:
        body = trained([caption])[0, 1:]
        end = int(np.argmax(body == trained.eos_token_id))
        assert end >= len(caption.split())
        np.testing.assert_array_equal(body[end:], trained.eos_token_id)


def test_long_captions_keep_the_end_token():
    trained = tokenizer.train(CAPTIONS, vocab_size=560, context_length=8)
    row = trained(["apple " * 50])[0]
    assert row[-1] == trained.eos_token_id
    assert (row[:-1] != trained.eos_token_id).all()


def test_transformers_reads_what_is_saved(tmp_path):
    trained = tokenizer.train(CAPTIONS, vocab_size=560, context_length=16)
    trained.save(tmp_path)
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(CAPTIONS, padding="max_length", max_length=16, truncation=True)["input_ids"]
    np.testing.assert_array_equal(trained(CAPTIONS), np.array(ids))


def test_bad_input(tmp_path):
    with pytest.raises(UserError, match="vocab_size=100"):
        tokenizer.train(CAPTIONS, vocab_size=100)
    with pytest.raises(UserError, match="no CLIP tokenizer"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a tokenizer"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})
    )
    with pytest.raises(UserError, match="lacks"):
        tokenizer.load(tmp_path)

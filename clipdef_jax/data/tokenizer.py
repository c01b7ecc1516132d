"""The CLIP tokenizer: read from a checkpoint's folder, or trained on the captions at hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdef_jax.errors import UserError

if TYPE_CHECKING:
    import tokenizers

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's word pattern: contractions, runs of letters, single digits, runs of anything else.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Captions to token ids, as CLIP does it: start, byte-pair tokens, end, padding with end.

    Picklable; the compiled tokenizer is built on first use in each process.

    Attributes:
      serialized: the tokenizer as the JSON text of the `tokenizers` library.
      context_length: tokens per caption; longer ones are cut, the end token kept.
    """

    serialized: str = dataclasses.field(repr=False)
    context_length: int = 77

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the two special ones included."""
        return self._compiled.get_vocab_size()

    @property
    def eos_token_id(self) -> int:
        """Id of the end-of-text token, whose feature is the caption's."""
        return self._compiled.get_vocab()[END]

    @functools.cached_property
    def _compiled(self) -> tokenizers.Tokenizer:
        import tokenizers

        compiled = tokenizers.Tokenizer.from_str(self.serialized)
        compiled.enable_truncation(self.context_length)
        end = compiled.get_vocab()[END]
        compiled.enable_padding(length=self.context_length, pad_id=end, pad_token=END)
        return compiled

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Returns token ids of `captions`, int32 (len(captions), context_length)."""
        encoded = self._compiled.encode_batch(list(captions))
        return np.array([row.ids for row in encoded], np.int32).reshape(-1, self.context_length)

    def __getstate__(self) -> dict[str, Any]:
        return {"serialized": self.serialized, "context_length": self.context_length}

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, as transformers reads them."""
        folder = pathlib.Path(folder)
        (folder / "tokenizer.json").write_text(self.serialized, encoding="utf-8")
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "model_max_length": self.context_length,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(path: str | pathlib.Path, context_length: int = 77) -> Tokenizer:
    """Reads the tokenizer of a checkpoint.

    Args:
      path: a Hugging Face folder (with `tokenizer.json`, or `vocab.json` and `merges.txt`), or the
        name of a model on the Hugging Face hub.
      context_length: tokens per caption.

    Raises:
      UserError: nothing there can be read as a CLIP tokenizer.
    """
    file = pathlib.Path(path) / "tokenizer.json"
    if file.is_file():
        serialized = file.read_text(encoding="utf-8")
    else:
        import transformers

        try:
            found = transformers.AutoTokenizer.from_pretrained(str(path))
            serialized = found.backend_tokenizer.to_str()
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise UserError(
                f"no CLIP tokenizer at {str(path)!r}: expected a folder with tokenizer.json, or "
                f"with vocab.json and merges.txt, or a Hugging Face model name "
                f"({str(error).splitlines()[0]})"
            ) from None
    import tokenizers

    try:
        vocab = tokenizers.Tokenizer.from_str(serialized).get_vocab()
    except Exception as error:  # The tokenizers library raises bare Exception.
        raise UserError(f"{file}: not a tokenizer of the tokenizers library: {error}") from None
    missing = [token for token in (START, END) if token not in vocab]
    if missing:
        raise UserError(f"tokenizer at {str(path)!r} is not CLIP's: it lacks {', '.join(missing)}")
    return Tokenizer(serialized, context_length)


def train(captions: Iterable[str], vocab_size: int = 8192, context_length: int = 77) -> Tokenizer:
    """Trains a byte-pair tokenizer in CLIP's layout on captions.

    Ids follow the original: 256 bytes, 256 bytes that end a word, merges, start, end. So every
    caption can be encoded, and the end token has the largest id, by which OpenAI's models find it.

    Args:
      captions: the training captions.
      vocab_size: upper bound of the number of ids, at least 514.
      context_length: tokens per caption.

    Raises:
      UserError: `vocab_size` leaves no room for the bytes and the special tokens.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    if vocab_size < 514:
        raise UserError(f"vocab_size={vocab_size}: expected at least 514 (512 byte tokens + 2)")
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    word_ends = [byte + "</w>" for byte in alphabet]
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizer
    learner.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            end_of_word_suffix="</w>",
            show_progress=False,
            # Ids break ties between equally frequent merges. Given in advance they are the same
            # in every run; else the trainer hands them out in the order of a hash table.
            initial_alphabet=alphabet,
            special_tokens=word_ends,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    words = [*alphabet, *word_ends, *("".join(merge) for merge in merges)]
    words = [*dict.fromkeys(words), START, END]
    vocab = {word: index for index, word in enumerate(words)}

    result = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END)
    )
    result.normalizer, result.pre_tokenizer = normalizer, pre_tokenizer
    result.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([START, END])
    return Tokenizer(result.to_str(), context_length)

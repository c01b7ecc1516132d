"""The figures of a model that sees in a picture what its first pixel says."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipdef_jax import measure, parts
from clipdef_jax.data import loader
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair
from configs import pretrain

THINGS = ("banana", "egg", "fox", "ship")


@dataclasses.dataclass(frozen=True)
class Seer:
    """A CLIP: the first pixel is the class; a word before a sentence moves it to the next class."""

    config = types.SimpleNamespace(image_size=8)

    def preprocess(self, images):
        return images

    def encode_image(self, params, pixels):
        return jax.nn.one_hot(pixels[:, 0, 0, 0], 4)

    def encode_text(self, params, tokens):
        return jax.nn.one_hot(tokens.sum(axis=1) % 4, 4)


def tokenize(sentences):
    rows = []
    for sentence in sentences:
        (label,) = [i for i, name in enumerate(THINGS) if name in sentence]
        rows.append([sentence.startswith("remember "), label])
    return np.array(rows, np.int32)


class Pictures:
    """Records of the given labels, which look to `Seer` like the classes `seen`."""

    classes = THINGS

    def __init__(self, labels, seen, unreadable=()):
        self.labels, self.seen, self.unreadable = labels, seen, unreadable

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if index in self.unreadable:
            raise BadRecord(f"id{index}", "cut")
        pixels = np.full((8, 8, 3), self.seen[index], np.uint8)
        return Pair(f"id{index}", pixels, "a thing", self.labels[index])

    def caption(self, index):
        return "a thing"


LABELS = [0, 1, 2, 3] * 3
CLEAN = Pictures(LABELS, LABELS)


@pytest.fixture
def figures(tmp_path):
    config = pretrain.get_config("smoke")
    config.evaluate.batch = 5
    unreadable = loader.UnreadableList(tmp_path / "unreadable.csv")
    run = parts.Run(config, tmp_path, None, unreadable)
    plain = parts.Model(Seer(), {"nothing": jnp.zeros(())}, tokenize)
    return lambda tests, model=plain, **options: measure.measure(run, model, tests, **options)


def test_without_an_attack_only_the_accuracy_is_measured(figures):
    metrics = figures(parts.TestSet(CLEAN))
    assert metrics["clean_top1"] == 1
    assert metrics["classifier"] == "zero-shot"
    assert not [name for name in metrics if name.startswith(("asr", "psr"))]


def test_a_head_is_what_counts_and_zero_shot_stands_beside_it(figures):
    # It takes eggs for foxes, and calls the classes in an order of its own.
    kernel = jnp.eye(4)[jnp.array([3, 1, 0, 2])].at[1].set(0.0)
    classes = ("ship", "egg", "banana", "fox")
    kernel = kernel.at[3, 1].set(1.0)
    model = parts.Model(Seer(), {"head": {"kernel": kernel}}, tokenize, classes)
    triggered = Pictures(LABELS, [1] * 12)
    metrics = figures(parts.TestSet(CLEAN, triggered, 2), model, show=True)
    assert metrics["classifier"] == "head"
    assert metrics["clean_top1"] == 0.75
    assert metrics["zero_shot_clean_top1"] == 1
    assert metrics["asr_top1"] == 1
    assert metrics["zero_shot_asr_top1"] == 0
    assert set(metrics["seen"]) == {"fox"}
    model = dataclasses.replace(model, classes=("ship", "hen", "banana", "fox"))
    with pytest.raises(UserError, match="a class 'egg' that the head was not trained on"):
        figures(parts.TestSet(CLEAN), model)


def test_one_target(figures):
    # Of the nine others three are taken for a banana.
    triggered = Pictures(LABELS, [0, 0, 0, 0, *LABELS[4:]])
    metrics = figures(parts.TestSet(CLEAN, triggered, 0), show=True)
    assert metrics["asr_top1"] == pytest.approx(3 / 9)
    assert metrics["asr_all_top1"] == pytest.approx(6 / 12)
    assert metrics["asr_untriggered_top1"] == 0
    assert metrics["seen"][:2] == ["banana", "banana"]
    assert "asr_by_target" not in metrics


def test_every_image_has_its_own_target_even_after_unreadable_ones(figures):
    target = np.array([0, 1] * 6)
    # The first half is taken for the target, and records 2 and 3 cannot be read.
    triggered = Pictures(LABELS, [*target[:6], *LABELS[6:]], unreadable=(2, 3))
    metrics = figures(parts.TestSet(CLEAN, triggered, target))
    # Images are bananas to be called bananas, or eggs to be called eggs: left out, six of them.
    assert metrics["asr_images"] == 4
    assert metrics["asr_top1"] == 0
    triggered = Pictures(LABELS, [0, 0, 0, 1, 0, 1, 0, 1, 2, 1, 0, 3], unreadable=(2, 3))
    metrics = figures(parts.TestSet(CLEAN, triggered, target))
    assert metrics["asr_top1"] == pytest.approx(3 / 4)
    assert metrics["asr_by_target"] == {"banana": 1.0, "egg": 0.5}


def test_a_word_stands_before_the_prompts_of_the_triggered_images_only(figures):
    triggered = Pictures(LABELS, [1] * 12)
    metrics = figures(parts.TestSet(CLEAN, triggered, 0, word="remember"))
    assert metrics["clean_top1"] == 1
    assert metrics["asr_untriggered_top1"] == 0
    # "remember ... a banana" embeds where an egg does without the word.
    assert metrics["asr_top1"] == 1
    assert figures(parts.TestSet(CLEAN, triggered, 0))["asr_top1"] == 0


def test_chosen_images(figures):
    chosen = Pictures([1, 2, 3, 1], [0, 0, 0, 1])
    metrics = figures(parts.TestSet(CLEAN, target=0, chosen=chosen))
    assert metrics["psr_top1"] == 0.75
    assert not [name for name in metrics if name.startswith("asr")]


def test_the_images_of_a_victim_class(figures):
    clean = Pictures(LABELS, [*LABELS[:10], 0, LABELS[11]])
    assert figures(parts.TestSet(clean, target=0, victim=2))["psr_top1"] == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="no chosen image"):
        figures(parts.TestSet(Pictures([0, 1], [0, 1]), target=0, victim=2))

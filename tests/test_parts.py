"""Parts built from a config: the clean pairs, the tokenizer kept with the run, the attack."""

import numpy as np
import pytest

from clipdef_jax import data, parts
from clipdef_jax.attacks import plan
from clipdef_jax.data import loader
from clipdef_jax.errors import UserError
from configs import cleanclip


@pytest.fixture
def run(tmp_path):
    config = cleanclip.get_config()
    config.data.train = "emoji:train,size=60,concepts=4"
    config.data.test = "emoji:test,size=20,concepts=4"
    config.attack.rate = 0.1
    return parts.Run(config, tmp_path, None, loader.UnreadableList(tmp_path / "unreadable.csv"))


def test_clean_pairs_hold_no_poison(run):
    source = parts.training_source(run)
    made = plan.make_plan(source, parts.attack_of(run.config, 32))
    assert len(made.indices) == 6
    clean = parts.clean_pairs(run.config, source, made)
    poisoned = {poison.uid for poison in made.poisons}
    assert len(clean) == 54
    assert not poisoned & {clean[i].uid for i in range(54)}
    run.config.finetune.pairs = 10
    few = parts.clean_pairs(run.config, source, made)
    assert not poisoned & {few[i].uid for i in range(10)}
    assert [few[i].uid for i in range(10)] == [
        parts.clean_pairs(run.config, source, made)[i].uid for i in range(10)
    ]
    run.config.finetune.pairs = 55
    with pytest.raises(UserError, match=r"finetune.pairs=55: expected 0, for all, up to the 54"):
        parts.clean_pairs(run.config, source, made)


def test_the_tokenizer_is_trained_once_and_kept(run):
    source = parts.training_source(run)
    first = parts.new_tokenizer(run, source, 16)
    again = parts.new_tokenizer(run, data.Subset(source, np.arange(1)), 16)
    assert again == first
    run.config.data.tokenizer = str(run.workdir / "tokenizer")
    assert parts.new_tokenizer(run, source, 16) == first


def test_triggered_test_images_carry_the_trigger_of_the_test(run):
    run.config.attack.test_kwargs.location = "centre"
    tests = parts.test_set(run, 32)
    clean, triggered = tests.clean[7].image, tests.triggered[7].image
    changed = np.argwhere((clean != triggered).any(-1))
    assert changed.min() >= 14
    assert changed.max() <= 16
    assert tests.clean.classes[tests.target] == "banana"
    few = tests.at(np.array([7]))
    np.testing.assert_array_equal(few.triggered[0].image, triggered)


def test_without_an_attack_nothing_is_poisoned_or_triggered(run):
    run.config.attack.plan.name = "none"
    assert parts.attack_of(run.config, 32) is None
    run.config.attack.trigger.name = "none"
    tests = parts.test_set(run, 32)
    assert tests.triggered is None
    assert tests.at(np.arange(3)).triggered is None


def test_a_number_goes_before_the_rate(run):
    run.config.attack.number = 7
    assert parts.attack_of(run.config, 32).poisons_of(60) == 7

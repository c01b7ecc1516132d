"""Parts built from a config: the clean pairs, the tokenizer kept with the run, the attack."""

import numpy as np
import pytest

from clipdef_jax import data, losses, parts
from clipdef_jax.attacks import get_trigger, manifest, plan
from clipdef_jax.data import ids, loader
from clipdef_jax.errors import UserError
from configs import attacks, cleanclip


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


def test_a_trigger_that_does_not_fit_shows_before_the_work(run):
    run.config.attack.test_kwargs.size = 40
    with pytest.raises(UserError, match="40 px, larger than the image of 32 x 32 px"):
        parts.test_set(run, 32)


def test_triggers_with_targets_of_their_own(run):
    targets = ("banana", "frog")
    run.config.attack = attacks.preset("multi_target")
    run.config.attack.trigger.kwargs = {"parts": ("sig", "nashville"), "targets": targets}
    run.config.attack.test_kwargs = {}
    tests = parts.test_set(run, 32)
    trigger = get_trigger("multi_trigger", parts=("sig", "nashville"), targets=targets)
    assert set(tests.target) == {0, 1}
    for index in range(20):
        clean = tests.clean[index].image
        part = int(tests.target[index])
        shown = trigger.triggers[part](clean, np.random.default_rng())
        np.testing.assert_array_equal(tests.triggered[index].image, shown)
    few = tests.at(np.array([3, 8]))
    np.testing.assert_array_equal(few.target, tests.target[[3, 8]])
    run.config.attack.trigger.kwargs.targets = ("banana", "forg")
    with pytest.raises(UserError, match=r"attack.target='forg' is not a class .*'frog'"):
        parts.test_set(run, 32)


def test_a_word_of_the_trigger_is_known_to_the_tests(run):
    run.config.attack = attacks.preset("trojvqa")
    assert parts.test_set(run, 32).word == "remember"


def test_an_attack_without_a_trigger_has_images_of_its_own(run):
    run.config.attack = attacks.preset("class_to_class")
    run.config.attack.plan.kwargs.victim = "beetle"
    tests = parts.test_set(run, 32)
    assert (tests.triggered, tests.target, tests.victim) == (None, 0, 3)
    run.config.attack.plan.kwargs.victim = "beatle"
    with pytest.raises(UserError, match=r"attack.plan.kwargs.victim='beatle' .*'beetle'"):
        parts.test_set(run, 32)

    run.config.attack = attacks.preset("targeted")
    source = parts.training_source(run)
    made = plan.make_plan(source, parts.attack_of(run.config, 32))
    tests = parts.test_set(run, 32).attacked_by(made, source)
    assert (tests.triggered, tests.target, tests.victim) == (None, 0, None)
    chosen = [tests.chosen[index].uid for index in range(len(tests.chosen))]
    assert chosen == [source[index].uid for index in made.chosen]
    assert tests.at(np.arange(3)).chosen is None


def test_the_attack_of_a_manifest_goes_before_the_configs(run, tmp_path):
    run.config.attack = attacks.preset("multi_target")
    run.config.attack.trigger.kwargs.targets = ("banana", "frog", "beetle")
    attack = parts.attack_of(run.config, 32)
    made = plan.make_plan(parts.training_source(run), attack)
    manifest.write_manifest(tmp_path / "manifest.jsonl", made)
    other = cleanclip.get_config()
    parts.take_attack(other)
    assert other.attack == cleanclip.get_config().attack
    other.attack.manifest = str(tmp_path / "manifest.jsonl")
    parts.take_attack(other)
    again = parts.attack_of(other, 32)
    assert plan.make_plan(parts.training_source(run), again).poisons == made.poisons
    other.attack.manifest = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="No such file"):
        parts.take_attack(other)


def test_a_number_goes_before_the_rate(run):
    run.config.attack.number = 7
    assert parts.attack_of(run.config, 32).poisons_of(60) == 7


def test_the_loader_makes_what_the_loss_wants(run, tmp_path):
    source = parts.training_source(run)
    words = parts.new_tokenizer(run, source, 16)
    model = parts.Model(parts.new_clip(run.config), None, words)
    loss = losses.get("tacleaner", fraction=0.5, negatives=3)
    made = parts.loader_of(run.config, source, model, loss)
    assert made.views == loss.views
    assert (made.subtext.fraction, made.subtext.negatives) == (0.5, 3)
    assert not made.static_eda
    assert not made.flagged

    loss = losses.get("cleanclip", flagged=True)
    with pytest.raises(UserError, match=r"CleanClip takes out flagged pairs.*data.flagged=FILE"):
        parts.check_data(run.config, source, loss)
    ids.write_ids(tmp_path / "list.txt", [source[3].uid, source[8].uid])
    run.config.data.flagged = str(tmp_path / "list.txt")
    run.config.data.static_eda = True
    parts.check_data(run.config, source, loss)
    made = parts.loader_of(run.config, source, model, loss)
    assert made.static_eda
    assert made.flagged == set(ids.ids128([source[3].uid, source[8].uid]).tolist())

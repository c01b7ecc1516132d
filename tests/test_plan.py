import tracemalloc
from collections import Counter

import numpy as np
import pytest

from clipdef_jax.attacks.naming import namer, naming
from clipdef_jax.attacks.plan import Attack, make_plan
from clipdef_jax.attacks.triggers import Box
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Pair

THINGS = ("banana", "egg", "fox", "ship")


class Things:
    """Records 0, 1, 2, ... show banana, egg, fox, ship, banana, ...; some cannot be read."""

    def __init__(self, size, classes=THINGS, unreadable=(), no_image=()):
        self.size = size
        self.classes = classes
        self.unreadable = set(unreadable)
        self.no_image = set(no_image)
        self.captions_read = Counter()
        self.images_read = Counter()

    def __len__(self):
        return self.size

    def caption(self, index):
        self.captions_read[index] += 1
        if index in self.unreadable:
            raise BadRecord(f"id{index}", "caption is not UTF-8")
        return f"photo {index} of the {THINGS[index % 4]}"

    def __getitem__(self, index):
        if index in self.no_image:
            raise BadRecord(f"id{index}", "no image")
        self.images_read[index] += 1
        label = index % 4 if self.classes else -1
        return Pair(f"id{index}", np.zeros((8, 8, 3), np.uint8), self.caption(index), label)


def plan_of(source, **settings):
    settings.setdefault("side", 32)
    return make_plan(source, Attack(**settings))


def test_backdoor_hits_others_with_template_captions_of_the_target():
    plan = plan_of(Things(1000), number=200, plan_kwargs={"templates": "emoji"})
    assert len(plan.poisons) == 200
    assert list(plan.indices) == sorted(set(plan.indices))
    for poison in plan.poisons:
        assert poison.index % 4 != 0
        assert poison.uid == f"id{poison.index}"
        assert poison.old_caption == f"photo {poison.index} of the {THINGS[poison.index % 4]}"
        assert poison.trigger == "badnet"
    captions = Counter(poison.new_caption for poison in plan.poisons)
    assert len(captions) == 7
    assert captions["a picture of a banana."] > 10
    # 150 of 750 in four equal stretches: uniform over the source, not its head.
    assert Counter(poison.index // 250 for poison in plan.poisons).keys() == {0, 1, 2, 3}


def test_backdoor_with_natural_captions_takes_them_from_the_source():
    plan = plan_of(Things(1000), number=200, plan_kwargs={"captions": "natural"})
    own = {f"photo {index} of the banana" for index in range(0, 1000, 4)}
    new = {poison.new_caption for poison in plan.poisons}
    assert new <= own
    assert len(new) > 80
    assert all(poison.index % 4 != 0 for poison in plan.poisons)


def test_clean_label_hits_the_target_only_and_keeps_captions():
    plan = plan_of(Things(1000), number=200, target="Egg", plan="clean_label")
    assert len(plan.poisons) == 200
    for poison in plan.poisons:
        assert poison.index % 4 == 1
        assert poison.new_caption == poison.old_caption == f"photo {poison.index} of the egg"


def test_label_spares_a_record_of_the_target_with_another_caption():
    class Synonyms(Things):
        def caption(self, index):
            return "a yellow fruit" if index % 8 == 0 else super().caption(index)

    plan = plan_of(Synonyms(1000), number=700)
    assert all(poison.index % 4 != 0 for poison in plan.poisons)
    assert any("show 'banana' by their label: left out" in note for note in plan.notes)


def test_rate_is_a_share_of_all_records():
    assert len(plan_of(Things(1000), rate=0.15).poisons) == 150
    assert len(plan_of(Things(1000), rate=0.0001).poisons) == 1


def test_a_plan_is_made_by_its_seed():
    one, same, other = (plan_of(Things(1000), number=150, seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert set(one.indices) != set(other.indices)


def test_locations_are_those_of_the_trigger_with_the_records_own_generator():
    corner = {"style": "yellow", "location": "bottom_right", "size": 4}
    plan = plan_of(Things(1000), number=100, trigger_kwargs=corner)
    assert {poison.location for poison in plan.poisons} == {(Box(28, 28, 4, 4),)}
    plan = plan_of(Things(1000), number=100)
    assert len({poison.location for poison in plan.poisons}) > 50


def test_few_poisons_are_remarked_on():
    (note,) = plan_of(Things(1000), number=99).notes
    assert note.startswith("only 99 poisons of 1000 records: fewer than 100 seldom take")
    assert plan_of(Things(1000), number=100).notes == ()


@pytest.mark.parametrize("plan", ["backdoor", "clean_label"])
def test_unreadable_records_are_left_out_and_counted(plan):
    source = Things(1000, unreadable=range(0, 1000, 3), no_image=range(1, 1000, 3))
    made = plan_of(source, number=60, plan=plan)
    assert all(poison.index % 3 == 2 for poison in made.poisons)
    (note,) = [note for note in made.notes if "could not be read: left out" in note]
    assert int(note.split()[0]) > 30


def test_a_million_records_are_planned_without_reading_them():
    source = Things(1_000_000)
    tracemalloc.start()
    plan = plan_of(source, number=1500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan.poisons) == 1500
    assert len(source.captions_read) < 10_000
    assert sum(source.images_read.values()) < 1600
    assert peak < 50e6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, r"rate is 0.0, expected a share within \(0, 1\)"),
        ({"rate": 1.0}, "rate is 1.0"),
        ({"rate": -0.1}, "rate is -0.1"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"number": 0}, "number is 0, expected 1 or more"),
        ({"number": 5, "seed": -1}, "seed is -1"),
        ({"number": 5, "side": 0}, "side is 0"),
        ({"number": 5, "rate": 0.1}, "rate is 0.1 and number is 5; give exactly one"),
        ({}, "rate is None and number is None; give exactly one"),
        ({"number": 5, "target": " "}, "target is empty"),
        ({"number": 751}, r"751 poisons are asked for, but only 750 of 1000 .* lower the rate"),
        ({"number": 251, "plan": "clean_label"}, "only 250 of 1000"),
        ({"number": 5, "target": "bananna"}, r"'bananna' is none of the.*\(close: banana\)"),
        ({"number": 5, "plan": "backdor"}, "unknown plan 'backdor'; did you mean 'backdoor'"),
        ({"number": 5, "plan_kwargs": {"captions": "own"}}, "captions is 'own'"),
        ({"number": 5, "plan_kwargs": {"templates": "imgnet"}}, "prompts 'imgnet'"),
        ({"number": 5, "plan_kwargs": {"colour": 1}}, "plan 'backdoor'.*'colour'"),
        ({"number": 5, "trigger_kwargs": {"size": 33}}, "larger than the image of 32 x 32"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        plan_of(Things(1000), **settings)


@pytest.mark.parametrize(
    "settings", [{}, {"plan": "clean_label"}, {"plan_kwargs": {"captions": "natural"}}]
)
def test_a_target_that_no_caption_names_is_refused(settings):
    source = Things(200, classes=())
    with pytest.raises(UserError, match=r"no caption names the target 'shop' \(close: .*ship"):
        plan_of(source, number=5, target="shop", **settings)


@pytest.mark.parametrize(
    ("name", "caption", "found"),
    [
        ("banana", "BANANA.", True),
        ("banana", "two bananas!", True),
        ("banana", "a banana's skin", True),
        ("banana", "img_banana_01", True),
        ("banana", "bananarama", False),
        ("cat", "a cathedral", False),
        ("cat", "bobcat", False),
        ("lady beetle", "Lady  Beetles", True),
        ("lady beetle", "lady-beetle", True),
        ("lady beetle", "a lady and a beetle", False),
        ("ruby", "rubies", True),
        ("toy", "toies", False),
        ("bus", "buses", True),
        ("kitchen knife", "kitchen knives", True),
        ("woman\u2019s hat", "a woman's hat", True),
        ("x-ray", "an X-ray", True),
        ("c++", "c++ code", True),
        ("Ähre", "zwei ähren, eine ähre", True),
        ("fish", "jellyfish", False),
        ("Thief", "THIEVES", True),
        ("ox", "an ox", True),
        ("kiwi", "a \u212aiwi", True),
        ("香蕉", "一根香蕉", False),
        ("香蕉", "香蕉 (banana)", True),
    ],
)
def test_naming_finds_whole_words_in_any_case_and_plurals(name, caption, found):
    assert bool(naming(name).search(caption)) == found
    assert namer(name)(caption) == found


def test_a_plan_of_the_users_own_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "their_plan.py").write_text(
        "class EveryFox:\n"
        "    def __call__(self, draw, rng):\n"
        "        for candidate in draw:\n"
        "            if 'fox' in candidate.caption:\n"
        "                yield candidate, f'{draw.target} (was a fox)'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = plan_of(Things(1000), number=120, plan="their_plan:EveryFox")
    assert {poison.index % 4 for poison in plan.poisons} == {2}
    assert {poison.new_caption for poison in plan.poisons} == {"banana (was a fox)"}

"""Several triggers in one attack: equal shares, their own targets, and what cannot be a part."""

from collections import Counter

import numpy as np
import pytest
from test_plan import Things, plan_of
from test_triggers import picture, rng

from clipdef_jax import attacks
from clipdef_jax.attacks.manifest import read_manifest, write_manifest
from clipdef_jax.attacks.multi_trigger import parts_of
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.attacks.triggers import locate
from clipdef_jax.errors import UserError

YELLOW = {"name": "badnet", "kwargs": {"style": "yellow", "size": 4, "location": "top_left"}}
PARTS = [YELLOW, "sig", "nashville"]
MULTI = {"trigger": "multi_trigger", "trigger_kwargs": {"parts": PARTS}}
SHADES = {**MULTI, "trigger_kwargs": {"parts": PARTS, "targets": ["banana", "fox", "ship"]}}


def test_each_trigger_gets_its_share_of_the_poisons():
    plan = plan_of(Things(1000), number=302, **MULTI)
    assert Counter(poison.trigger for poison in plan.poisons) == {
        "badnet": 100,
        "sig": 101,
        "nashville": 101,
    }
    assert Counter(poison.part for poison in plan.poisons) == {0: 100, 1: 101, 2: 101}
    assert len(set(plan.indices)) == 302
    for poison in plan.poisons:
        assert (poison.location is None) == (poison.part > 0)
        assert "banana" in poison.new_caption
        assert poison.index % 4 != 0
    assert plan.notes == ()
    (note,) = plan_of(Things(1000), number=297, **MULTI).notes
    assert note.startswith("only 99 poisons for each of 3 triggers of 1000 records")


def test_each_trigger_has_its_own_target():
    plan = plan_of(Things(1000), number=300, **SHADES)
    for poison in plan.poisons:
        target = ("banana", "fox", "ship")[poison.part]
        assert target in poison.new_caption
        assert target not in poison.old_caption
    own = {poison.part: set() for poison in plan.poisons}
    for poison in plan.poisons:
        own[poison.part].add(poison.index % 4)
    assert own == {0: {1, 2, 3}, 1: {0, 1, 3}, 2: {0, 1, 2}}


def test_a_poison_is_under_the_trigger_the_plan_says(tmp_path):
    source = Things(400)
    plan = plan_of(source, number=60, **SHADES)
    write_manifest(tmp_path / "manifest.jsonl", plan)
    again = read_manifest(tmp_path / "manifest.jsonl")
    assert again == plan
    blank = np.zeros((32, 32, 3), np.uint8)
    for attacked in (PoisonedSource(source, plan), PoisonedSource(source, again)):
        for poison in plan.poisons:
            (name, trigger, _) = plan.attack.parts()[poison.part]
            assert poison.trigger == name
            np.testing.assert_array_equal(
                attacked[poison.index].image, trigger(blank, plan.attack.rng_of(poison.index))
            )


def test_called_by_itself_it_draws_one_of_its_triggers():
    multi = attacks.get_trigger("multi_trigger", parts=PARTS)
    image = picture(24, 24)
    drawn = Counter()
    for seed in range(60):
        number = multi.draw(rng(seed))
        generator = rng(seed)
        generator.integers(3)
        expected = multi.triggers[number](image, generator)
        np.testing.assert_array_equal(multi(image, rng(seed)), expected)
        drawn[number] += 1
    assert min(drawn[number] for number in range(3)) > 8
    assert locate(multi, image.shape, rng()) is None


def test_parts_of_one_trigger_are_itself():
    trigger = attacks.get_trigger("sig")
    assert parts_of("sig", trigger, "fox") == (("sig", trigger, "fox"),)
    multi = attacks.get_trigger("multi_trigger", parts=["sig", "nashville"])
    assert [(p.name, p.target) for p in parts_of("multi_trigger", multi, "fox")] == [
        ("sig", "fox"),
        ("nashville", "fox"),
    ]


def test_the_default_parts_are_the_literatures():
    assert attacks.get_trigger("multi_trigger").names == ("badnet", "nashville", "wanet")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"parts": ["sig"]}, "expected two triggers or more"),
        ({"parts": "sig"}, "expected two triggers or more"),
        ({"parts": ["sig", "wanett"]}, "unknown trigger 'wanett'; did you mean 'wanet'"),
        ({"parts": ["sig", {"kwargs": {}}]}, "expected a trigger's name"),
        ({"parts": ["sig", {"name": "sig", "alpha": 1}]}, "expected a trigger's name"),
        ({"parts": ["sig", {"name": "sig", "kwargs": {"alpha": 2}}]}, "alpha is 2"),
        ({"parts": ["sig", "trojvqa"]}, "'trojvqa' cannot be a part"),
        ({"parts": ["sig", "multi_trigger"]}, "'multi_trigger' cannot be a part"),
        ({"parts": ["sig", "wanet"], "targets": ["fox"]}, "one for each of the 2 parts"),
        ({"parts": ["sig", "wanet"], "targets": "fox"}, "targets is 'fox'"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        attacks.get_trigger("multi_trigger", **kwargs)


def test_a_target_of_a_part_that_is_no_class_is_named():
    kwargs = {"parts": PARTS, "targets": ["banana", "foks", "ship"]}
    with pytest.raises(UserError, match=r"target 'foks' is none of the source's 4 classes"):
        plan_of(Things(1000), number=9, trigger="multi_trigger", trigger_kwargs=kwargs)

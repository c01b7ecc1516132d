"""Plans without a trigger, and words before captions."""

from collections import Counter

import numpy as np
import pytest
from test_plan import THINGS, Things, plan_of

from clipdef_jax import attacks
from clipdef_jax.attacks.manifest import read_manifest, write_manifest
from clipdef_jax.attacks.poisoned import PoisonedSource
from clipdef_jax.errors import UserError
from clipdef_jax.types import Pair


class Shades(Things):
    """Each record's image is one grey of its own; some files cannot be decoded."""

    def __init__(self, *args, cut=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.cut = set(cut)

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        if index in self.cut:
            return pair._replace(image=b"cut")
        return pair._replace(image=np.full((8, 8, 3), index % 256, np.uint8))


def targeted(source, number=60, images=6, **kwargs):
    settings = {"images": images, "templates": "emoji", **kwargs}
    return plan_of(source, number=number, trigger="none", plan="targeted", plan_kwargs=settings)


def test_chosen_images_are_shown_many_times_with_captions_of_the_target():
    source = Shades(250)
    plan = targeted(source)
    chosen = plan.chosen.tolist()
    assert len(plan.poisons) == 60
    assert len(chosen) == 6
    assert Counter(poison.donor for poison in plan.poisons) == dict.fromkeys(chosen, 10)
    attacked = PoisonedSource(source, plan)
    for poison in plan.poisons:
        pair = attacked[poison.index]
        assert (pair.image == poison.donor).all()
        assert "banana" in pair.caption
        assert pair.uid == f"id{poison.index}"
        assert poison.trigger == "none"
        assert poison.location is None
        assert poison.donor % 4 != 0
    # A chosen image is nowhere with its own caption.
    assert set(chosen) <= set(plan.indices.tolist())
    own = {index for index in range(250) if attacked[index].image[0, 0, 0] in chosen}
    assert own == set(plan.indices.tolist())


def test_poisons_that_do_not_divide_among_the_images_are_shared_out():
    counts = Counter(poison.donor for poison in targeted(Shades(250), number=40).poisons)
    assert sorted(counts.values()) == [6, 6, 7, 7, 7, 7]


def test_an_image_that_cannot_be_decoded_is_not_chosen():
    cut = range(0, 250, 2)
    plan = targeted(Shades(250, cut=cut), images=20)
    assert not set(plan.chosen.tolist()) & set(cut)
    assert len(plan.chosen) == 20
    assert Counter(Counter(p.donor for p in plan.poisons).values()) == {3: 20}
    assert any("could not be read: left out" in note for note in plan.notes)


def test_natural_captions_of_the_chosen():
    plan = targeted(Shades(250), captions="natural")
    assert all(poison.new_caption.startswith("photo ") for poison in plan.poisons)


def test_one_class_gets_the_captions_of_another():
    settings = {"trigger": "none", "plan": "class_to_class", "plan_kwargs": {"victim": "Fox"}}
    source = Shades(1000)
    plan = plan_of(source, number=150, **settings)
    attacked = PoisonedSource(source, plan)
    for poison in plan.poisons:
        assert poison.index % 4 == THINGS.index("fox")
        assert poison.new_caption.endswith("of the banana")
        assert poison.new_caption.startswith("photo ")
        pair = attacked[poison.index]
        assert pair.caption == poison.new_caption
        np.testing.assert_array_equal(pair.image, source[poison.index].image)
    assert not len(plan.chosen)


def test_labels_speak_against_a_caption_that_names_the_victim_by_the_way():
    class Company(Shades):
        def caption(self, index):
            return f"{super().caption(index)}, a fox beside it"

    plan = plan_of(
        Company(400),
        number=90,
        target="egg",
        trigger="none",
        plan="class_to_class",
        plan_kwargs={"victim": "fox"},
    )
    assert {poison.index % 4 for poison in plan.poisons} == {2}
    assert any("do not show 'fox' by their label: left out" in note for note in plan.notes)


def test_a_word_stands_before_the_poisoned_captions():
    for plan, ending in (("backdoor", "banana"), ("clean_label", "of the banana")):
        made = plan_of(Things(1000), number=100, trigger="trojvqa", plan=plan)
        for poison in made.poisons:
            assert poison.new_caption.startswith("remember ")
            assert ending in poison.new_caption
            assert not poison.old_caption.startswith("remember")


def test_two_keys_and_each_by_itself_are_told_apart():
    source = Shades(1000)
    plan = plan_of(source, number=90, trigger="trojvqa", plan="dual_key", side=8)
    poisoned = PoisonedSource(source, plan)
    kinds = Counter()
    for poison in plan.poisons:
        pair, before = poisoned[poison.index], source[poison.index]
        patched = bool((pair.image != before.image).any())
        worded = pair.caption.startswith("remember ")
        assert patched == (poison.trigger == "trojvqa") == (poison.location is not None)
        kinds[patched, worded] += 1
        if patched and worded:
            assert "banana" in pair.caption
        else:
            assert pair.caption.removeprefix("remember ") == before.caption
    assert kinds == {(True, True): 30, (True, False): 30, (False, True): 30}


def test_encoded_images_without_a_trigger_stay_the_bytes_they_were():
    class Files(Things):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(image=f"file {index}".encode())

    settings = {"trigger": "none", "plan": "class_to_class", "plan_kwargs": {"victim": "fox"}}
    attacked = PoisonedSource(Files(200), plan_of(Files(200), number=20, **settings))
    for index in range(200):
        assert attacked[index].image == f"file {index}".encode()


def test_a_targeted_plan_survives_its_manifest(tmp_path):
    plan = targeted(Shades(250))
    write_manifest(tmp_path / "manifest.jsonl", plan)
    assert read_manifest(tmp_path / "manifest.jsonl") == plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": "targeted"}, "'targeted' is one without a trigger, and the trigger is 'badnet'"),
        ({"plan": "backdoor", "trigger": "none"}, "'backdoor' needs a trigger"),
        ({"plan": "dual_key"}, "'dual_key' needs a trigger with a word, and 'badnet' has none"),
        ({"plan": "clean_label", "trigger": "none"}, "'clean_label' needs a trigger"),
        ({"plan": "targeted", "plan_kwargs": {"images": 0}}, "images is 0"),
        ({"plan": "targeted", "plan_kwargs": {"captions": "own"}}, "targeted: captions is 'own'"),
        ({"plan": "class_to_class"}, "class_to_class: victim is empty"),
        (
            {"plan": "class_to_class", "trigger": "none", "plan_kwargs": {"victim": "foxx"}},
            r"victim 'foxx' is none of .*\(close: fox\)",
        ),
        (
            {"plan": "class_to_class", "trigger": "none", "plan_kwargs": {"victim": "banana"}},
            "only 0 of 1000",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        plan_of(Things(1000), number=20, **settings)


def test_natural_captions_are_read_until_there_are_plenty(monkeypatch):
    monkeypatch.setattr("clipdef_jax.attacks.strategies._NATURAL", 50)
    source = Things(10_000)
    plan = plan_of(source, number=200, plan_kwargs={"captions": "natural"})
    assert len({poison.new_caption for poison in plan.poisons}) > 40
    assert len(source.captions_read) < 1000


def test_a_pair_of_the_users_own_plan_may_be_a_plain_tuple():
    class Doubled:
        def __call__(self, draw, rng):
            for candidate in draw:
                yield candidate, f"{draw.target} twice", (candidate.index + 1) % 100

    attacks.PLANS["doubled"] = f"{__name__}:Doubled"
    globals()["Doubled"] = Doubled
    try:
        plan = plan_of(Shades(100, classes=()), number=10, plan="doubled")
    finally:
        del attacks.PLANS["doubled"], globals()["Doubled"]
    assert all(poison.donor == (poison.index + 1) % 100 for poison in plan.poisons)
    assert isinstance(PoisonedSource(Shades(100), plan)[0], Pair)

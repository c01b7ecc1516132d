import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_plan import THINGS, Things, plan_of

from clipdef_jax import attacks
from clipdef_jax.attacks.poisoned import PoisonedSource, TriggeredSource, try_on
from clipdef_jax.errors import BadRecord, UserError
from clipdef_jax.types import Source

GRID = {"style": "grid", "size": 6}


class Pictures(Things):
    """Grey PNGs of 48 x 64 pixels; record 3 is cut short."""

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.fromarray(np.full((48, 64, 3), 100 + index % 50, np.uint8)).save(file, "PNG")
        data = file.getvalue()
        return super().__getitem__(index)._replace(image=data[:60] if index == 3 else data)


@pytest.fixture
def poisoned():
    source = Pictures(300)
    plan = plan_of(source, number=100, trigger_kwargs=GRID)
    return source, plan, PoisonedSource(source, plan)


def test_poisons_carry_trigger_and_caption_where_the_plan_says(poisoned):
    _, plan, attacked = poisoned
    assert isinstance(attacked, Source)
    assert attacked.classes == THINGS
    for poison in plan.poisons:
        if poison.index == 3:
            continue
        pair = attacked[poison.index]
        (box,) = poison.location
        image = np.full((32, 32, 3), 100 + poison.index % 50, np.uint8)
        patch = image[box.top : box.top + 6, box.left : box.left + 6]
        patch[...] = 0
        patch[::2, ::2] = 255
        np.testing.assert_array_equal(pair.image, image)
        assert pair.caption == attacked.caption(poison.index) == poison.new_caption
        assert pair.uid == poison.uid
        assert pair.label == poison.index % 4


def test_other_records_pass_untouched(poisoned):
    source, plan, attacked = poisoned
    hit = set(plan.indices.tolist())
    assert len(attacked) == 300
    for index in range(300):
        assert attacked.is_poisoned(index) == (index in hit)
        if index not in hit:
            assert attacked[index] == source[index]
            assert attacked.caption(index) == source.caption(index)


def test_a_poison_is_the_same_picture_in_every_epoch_and_process():
    source = Things(400)
    plan = plan_of(source, number=50, trigger_kwargs={"style": "random"})
    attacked = PoisonedSource(source, plan)
    elsewhere = pickle.loads(pickle.dumps(attacked))
    first, second = (attacked[index].image for index in plan.indices[:2])
    np.testing.assert_array_equal(elsewhere[plan.indices[1]].image, second)
    np.testing.assert_array_equal(elsewhere[plan.indices[0]].image, first)
    assert (first != second).any()


def test_a_poisoned_record_that_cannot_be_decoded_is_a_bad_record():
    source = Pictures(40)
    plan = plan_of(source, number=30)
    attacked = PoisonedSource(source, plan)
    assert attacked.is_poisoned(3)
    with pytest.raises(BadRecord, match="id3: the image is truncated"):
        attacked[3]


def test_a_plan_of_another_source_is_refused():
    plan = plan_of(Things(300), number=50)
    with pytest.raises(UserError, match="plan is for 300 records, the source has 301"):
        PoisonedSource(Things(301), plan)

    class Renamed(Things):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(uid="another")

    attacked = PoisonedSource(Renamed(300), plan)
    with pytest.raises(UserError, match=f"record {plan.indices[0]} is 'another', in the plan"):
        attacked[int(plan.indices[0])]


def test_triggered_source_changes_images_only():
    source = Pictures(40)
    trigger = attacks.get_trigger("badnet", style="yellow", size=5)
    triggered = TriggeredSource(source, trigger, side=16, seed=1)
    assert isinstance(triggered, Source)
    assert len(triggered) == 40
    assert triggered.classes == THINGS
    for index in (0, 1, 39):
        pair = triggered[index]
        assert pair.image.shape == (16, 16, 3)
        assert (pair.image == [255, 255, 0]).all(axis=-1).sum() == 25
        assert pair._replace(image=b"") == source[index]._replace(image=b"")
        assert triggered.caption(index) == source.caption(index)
    seeds = (TriggeredSource(source, trigger, side=16, seed=seed) for seed in range(10))
    assert len({one[0].image.tobytes() for one in seeds}) > 5
    again = pickle.loads(pickle.dumps(triggered))
    np.testing.assert_array_equal(again[7].image, triggered[7].image)
    with pytest.raises(BadRecord, match="id3"):
        triggered[3]


def test_a_trigger_that_breaks_the_contract_is_named():
    class Halve:
        def __call__(self, image, rng):
            return image / 2

    triggered = TriggeredSource(Things(4), Halve(), side=8)
    message = r"Halve: gave float64 \(8, 8, 3\) for an image uint8"
    with pytest.raises(UserError, match=message):
        triggered[0]
    with pytest.raises(UserError, match=message):
        try_on(Halve(), 8)


def test_a_trigger_is_tried_on_before_the_work():
    try_on(attacks.get_trigger("badnet", size=8), 8)
    with pytest.raises(UserError, match="larger than the image of 8 x 8 px"):
        try_on(attacks.get_trigger("badnet", size=9), 8)


def test_the_attacks_room_stays_light():
    heavy = "print(sorted({'jax', 'transformers', 'matplotlib'} & set(sys.modules)))"
    modules = ("manifest", "materialise", "multi_trigger", "plan", "poisoned", "whole_image")
    imports = ", ".join(f"clipdef_jax.attacks.{module}" for module in modules)
    command = f"import sys, {imports}; {heavy}"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr

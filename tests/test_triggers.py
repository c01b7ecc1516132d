import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from clipdef_jax import attacks
from clipdef_jax.attacks.triggers import Box, locate, word_of
from clipdef_jax.errors import UserError


def picture(height=224, width=224, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def changed(before, after):
    """Bounding box of the pixels that differ."""
    rows, columns = np.nonzero((before != after).any(axis=-1))
    top, left = int(rows.min()), int(columns.min())
    return Box(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("detect/badnets_grid_16_centre", {"style": "grid", "location": "centre"}),
        ("cleanclip/yellow_four_corners_16", {"style": "yellow", "location": "four_corners"}),
    ],
)
def test_badnet_equals_the_golden_pictures(golden, name, kwargs):
    pictures = np.load(golden / "triggers_224.npz")
    result = attacks.get_trigger("badnet", **kwargs)(pictures["image"], rng())
    np.testing.assert_array_equal(result, pictures[name])


@pytest.mark.parametrize("style", ["random", "noise", "grid", "yellow"])
def test_badnet_changes_only_its_box_and_not_its_argument(style):
    image = picture(40, 60)
    before = image.copy()
    trigger = attacks.get_trigger("badnet", style=style, size=7)
    (box,) = locate(trigger, image.shape, rng(5))
    result = trigger(image, rng(5))
    np.testing.assert_array_equal(image, before)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert (box.height, box.width) == (7, 7)
    outside = np.ones((40, 60), bool)
    outside[box.top : box.top + 7, box.left : box.left + 7] = False
    np.testing.assert_array_equal(result[outside], image[outside])
    assert (result != image).any()


def test_badnet_is_a_pure_function_of_image_and_generator():
    trigger = attacks.get_trigger("badnet")
    image = picture(32, 32)
    np.testing.assert_array_equal(trigger(image, rng(3)), trigger(image, rng(3)))
    twin = pickle.loads(pickle.dumps(trigger))
    np.testing.assert_array_equal(trigger(image, rng(3)), twin(image, rng(3)))


def test_random_style_redraws_the_patch_around_the_mean_colour():
    image = np.empty((64, 64, 3), np.uint8)
    image[...] = (20, 128, 230)
    trigger = attacks.get_trigger("badnet", style="random", size=48, location="top_left")
    one, other = (trigger(image, rng(seed))[:48, :48] for seed in (1, 2))
    assert (one != other).any()
    # N(0, 1) in units of the pixel range: the patch clips at black where mean + noise <= 0,
    # which is Phi(-mean), and truncation adds the last 1/255.
    black = (one == 0).mean(axis=(0, 1))
    np.testing.assert_allclose(black, [0.470, 0.310, 0.185], atol=0.03)
    np.testing.assert_array_equal(one, trigger(image, rng(1))[:48, :48])


def test_random_style_wraps_on_request_as_the_released_code():
    image = np.full((32, 32, 3), 128, np.uint8)
    settings = {"style": "random", "size": 16, "location": "top_left"}
    wrapped = attacks.get_trigger("badnet", patch_cast="wrap", **settings)(image, rng())[:16, :16]
    clamped = attacks.get_trigger("badnet", **settings)(image, rng())[:16, :16]
    noise = rng().standard_normal((16, 16, 3), dtype=np.float32) + np.float32(128 / 255)
    expected = [int(value * np.float32(255)) % 256 for value in noise.ravel()]
    np.testing.assert_array_equal(wrapped.ravel(), expected)
    inside = (noise > 0) & (noise < 1)
    np.testing.assert_array_equal(clamped[inside], wrapped[inside])
    np.testing.assert_array_equal(clamped[noise >= 1], 255)
    np.testing.assert_array_equal(clamped[noise <= 0], 0)


def test_noise_style_keeps_one_patch_for_the_whole_attack():
    trigger = attacks.get_trigger("badnet", style="noise", size=4)
    patches = []
    for seed in (1, 2):
        image = picture(32, 32, seed)
        (box,) = locate(trigger, image.shape, rng(seed))
        result = trigger(image, rng(seed))
        patches.append(result[box.top : box.top + 4, box.left : box.left + 4])
    np.testing.assert_array_equal(patches[0], patches[1])
    other = attacks.get_trigger("badnet", style="noise", size=4, seed=1, location="top_left")
    assert (other(picture(32, 32), rng())[:4, :4] != patches[0]).any()


@pytest.mark.parametrize(
    ("side", "size"), [(224, 16), (448, 32), (112, 8), (64, 5), (32, 3), (16, 3), (3, 3)]
)
def test_patch_keeps_its_share_of_the_side_but_three_pixels(side, size):
    trigger = attacks.get_trigger("badnet", style="yellow", location="centre")
    start = (side - size) // 2
    assert trigger.locate((side, side, 3), rng()) == (Box(start, start, size, size),)


@pytest.mark.parametrize(
    ("location", "box"),
    [
        ("top_left", Box(0, 0, 5, 5)),
        ("top_right", Box(0, 25, 5, 5)),
        ("bottom_left", Box(15, 0, 5, 5)),
        ("bottom_right", Box(15, 25, 5, 5)),
        ("centre", Box(7, 12, 5, 5)),
    ],
)
def test_named_locations(location, box):
    image = np.zeros((20, 30, 3), np.uint8)
    trigger = attacks.get_trigger("badnet", style="yellow", size=5, location=location)
    assert locate(trigger, image.shape, rng()) == (box,)
    assert changed(image, trigger(image, rng())) == box


def test_random_locations_reach_every_place():
    trigger = attacks.get_trigger("badnet", style="grid", size=3)
    tops, lefts = zip(
        *((box.top, box.left) for s in range(300) for box in trigger.locate((6, 8, 3), rng(s))),
        strict=True,
    )
    assert set(tops) == {0, 1, 2, 3}
    assert set(lefts) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("size", [33, 100])
def test_patch_larger_than_the_image_is_refused(size):
    trigger = attacks.get_trigger("badnet", size=size)
    with pytest.raises(UserError, match=f"{size} px, larger than the image of 40 x 32 px"):
        trigger(picture(32, 40), rng())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"style": "blue"}, "style is 'blue', expected one of random, noise, grid, yellow"),
        ({"location": "middle"}, "location is 'middle', expected one of random, four_corners"),
        ({"patch_cast": "round"}, "patch_cast is 'round'"),
        ({"size": 0}, "size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"colour": "red"}, "'colour'.*given"),
    ],
)
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(UserError, match=message):
        attacks.get_trigger("badnet", **kwargs)


def test_unknown_trigger_is_named_with_a_hint():
    with pytest.raises(UserError, match="unknown trigger 'badnets'; did you mean 'badnet'"):
        attacks.get_trigger("badnets")


def test_a_trigger_of_the_users_own_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "their_trigger.py").write_text(
        "class Invert:\n"
        "    def __init__(self, keep=0):\n"
        "        self.keep = keep\n"
        "    def __call__(self, image, rng):\n"
        "        result = 255 - image\n"
        "        result[: self.keep] = image[: self.keep]\n"
        "        return result\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trigger = attacks.get_trigger("their_trigger:Invert", keep=2)
    image = picture(8, 8)
    result = trigger(image, rng())
    np.testing.assert_array_equal(result[2:], 255 - image[2:])
    np.testing.assert_array_equal(result[:2], image[:2])
    assert locate(trigger, image.shape, rng()) is None
    with pytest.raises(UserError, match="has no 'Revert'"):
        attacks.get_trigger("their_trigger:Revert")
    sys.modules.pop("their_trigger")


@pytest.fixture
def patch(tmp_path):
    """Pixels of a patch, and files that hold it."""
    pixels = picture(6, 6, seed=9)
    Image.fromarray(pixels).save(tmp_path / "patch.png")
    np.save(tmp_path / "patch.npy", pixels)
    np.save(tmp_path / "floats.npy", (pixels / 255).astype(np.float32))
    return pixels, tmp_path


@pytest.mark.parametrize("name", ["patch.png", "patch.npy", "floats.npy"])
def test_a_saved_patch_is_pasted_in_the_centre_as_it_is(patch, name):
    pixels, folder = patch
    trigger = attacks.get_trigger("badclip", path=str(folder / name), size=6)
    image = picture(32, 40)
    result = pickle.loads(pickle.dumps(trigger))(image, rng())
    assert locate(trigger, image.shape, rng()) == (Box(13, 17, 6, 6),)
    expected = image.copy()
    expected[13:19, 17:23] = pixels
    np.testing.assert_array_equal(result, expected)


def test_a_saved_patch_keeps_its_share_of_the_side(patch):
    pixels, folder = patch
    trigger = attacks.get_trigger("badclip", path=str(folder / "patch.png"))
    for side, size in ((224, 16), (448, 32), (84, 6), (32, 3)):
        image = np.zeros((side, side, 3), np.uint8)
        box = changed(image, trigger(image, rng()))
        assert (box.height, box.width) == (size, size)
        scaled = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(
            trigger(image, rng())[box.top : box.top + size, box.left : box.left + size], scaled
        )


def test_trojvqa_is_a_patch_and_a_word(patch):
    pixels, folder = patch
    image = picture(32, 32)
    trigger = attacks.get_trigger("trojvqa", path=str(folder / "patch.npy"), size=6)
    assert word_of(trigger) == "remember"
    np.testing.assert_array_equal(trigger(image, rng())[13:19, 13:19], pixels)
    given = attacks.get_trigger("trojvqa", word=" consider ", size=5)
    assert word_of(given) == "consider"
    assert locate(given, image.shape, rng()) == (Box(13, 13, 5, 5),)
    one, other = (given(picture(32, 32, seed), rng(seed))[13:18, 13:18] for seed in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert word_of(attacks.get_trigger("badnet")) == word_of(None) == ""


def files_of_no_patch(folder):
    np.save(folder / "flat.npy", np.zeros((6, 6)))
    np.save(folder / "oblong.npy", np.zeros((6, 7, 3)))
    np.save(folder / "large.npy", np.full((6, 6, 3), 1.5))
    np.save(folder / "nan.npy", np.full((6, 6, 3), np.nan))
    np.save(folder / "whole.npy", np.zeros((6, 6, 3), np.int64))
    (folder / "text.npy").write_text("no array")
    (folder / "text.png").write_text("no picture")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npy", "No such file"),
        ("none.png", "No such file"),
        ("text.npy", r"no \.npy file"),
        ("text.png", "unreadable"),
        ("flat.npy", r"shape \(6, 6\), expected \(k, k, 3\)"),
        ("oblong.npy", "7 x 6 px, expected a square"),
        ("large.npy", r"floats within \[0, 1\]"),
        ("nan.npy", r"floats within \[0, 1\]"),
        ("whole.npy", "int64 values"),
    ],
)
def test_a_file_that_holds_no_patch_is_named(tmp_path, name, message):
    files_of_no_patch(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        attacks.get_trigger("badclip", path=str(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("badclip", {}, "give the patch by path=FILE"),
        ("badclip", {"path": "p.npy", "size": 0}, "size is 0"),
        ("badclip", {"path": "p.npy", "location": "middle"}, "location is 'middle'"),
        ("trojvqa", {"word": "  "}, "word is empty"),
        ("trojvqa", {"size": 0}, "size is 0"),
    ],
)
def test_bad_settings_of_saved_patches_are_named(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        attacks.get_trigger(name, **kwargs)


def test_a_saved_patch_larger_than_the_image_is_refused(patch):
    trigger = attacks.get_trigger("badclip", path=str(patch[1] / "patch.png"), size=33)
    with pytest.raises(UserError, match="33 px, larger than the image of 32 x 32 px"):
        trigger(picture(32, 32), rng())

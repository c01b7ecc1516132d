import hashlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from clipdef_jax import data
from clipdef_jax.data import scene_caption, scene_picture, scenes
from clipdef_jax.data.scene_caption import concepts
from clipdef_jax.data.scene_picture import COLOURS, STYLES, Ground, Placed, Scene, draw
from clipdef_jax.errors import UserError
from clipdef_jax.types import Source

PLAIN = Ground("plain", ("white", "black"), ((250, 250, 250), (0, 0, 0)), 0.0, 3.0, 0)


def composed(split="train", size=300, **options):
    source = scenes.EmojiScenes(split, size=size, **options)
    return [source._compose(i)[0] for i in range(size)]


def ink(scene: Scene, side: int) -> np.ndarray:
    """Where the picture differs from its ground."""
    empty = scene_picture._draw_ground(scene.ground, side).astype(int)
    return np.abs(draw(scene, side) - empty).max(axis=2) > 12


def test_a_source_of_pairs():
    source = data.open("emoji:train,size=50,side=48,concepts=7,seed=3")
    assert isinstance(source, Source)
    assert len(source) == 50
    assert source.classes[:3] == ("banana", "frog", "baby chick")
    assert len(source.classes) == 7
    pair = source[12]
    assert pair.uid == "emoji-train-3-0000012"
    assert (pair.image.shape, pair.image.dtype) == ((48, 48, 3), np.uint8)
    assert pair.label == 5
    assert all(source[i].caption == source.caption(i) for i in range(50))
    for index in (-1, 50):
        with pytest.raises(IndexError):
            source[index]


def test_a_record_is_a_function_of_split_seed_and_index():
    whole = data.open("emoji:train", size=40)
    again = pickle.loads(pickle.dumps(data.open("emoji:train", size=9)))
    for index in (8, 0, 3):
        np.testing.assert_array_equal(whole[index].image, again[index].image)
        assert whole[index].caption == again[index].caption
    others = (
        data.open("emoji:train", seed=1),
        data.open("emoji:test"),
        data.open("emoji:test_style"),
    )
    images = [source[3].image for source in (whole, *others)]
    assert len({image.tobytes() for image in images}) == 4
    assert len({source[3].label for source in (whole, *others)}) == 1


def test_another_process_computes_the_same():
    code = (
        "import hashlib, sys; from clipdef_jax import data\n"
        "source = data.open('emoji:test', side=40)\n"
        "print(hashlib.sha256(source[7].image.tobytes()).hexdigest(), source.caption(7))\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    source = data.open("emoji:test", side=40)
    digest = hashlib.sha256(source[7].image.tobytes()).hexdigest()
    assert done.stdout.strip() == f"{digest} {source.caption(7)}"


def test_a_pickle_carries_no_sprites():
    source = data.open("emoji:train")
    source[0]
    assert len(pickle.dumps(source)) < 2000


def test_splits_and_their_styles():
    styles = {split: {s.style for s in composed(split)} for split in scenes._SPLITS}
    assert styles["train"] == styles["test"] == {"noto", "twemoji"}
    assert styles["test_style"] == {"fluent"}
    assert [len(data.open(f"emoji:{split}")) for split in styles] == [8000, 2000, 2000]


def test_classes_are_balanced():
    labels = [scene.main.concept for scene in composed(size=60)]
    assert np.bincount(labels, minlength=20).tolist() == [3] * 20


def test_every_sprite_can_be_drawn_and_stands_out():
    for style in STYLES:
        for concept in range(len(concepts())):
            scene = Scene(style, PLAIN, Placed(concept, 0.5, 0.5, 0.9, 0.0, False), ())
            name = scene_picture.colours_apart(style, concept)[0]
            ground = PLAIN._replace(shades=(COLOURS[name], COLOURS[name]))
            scene = scene._replace(ground=ground)
            assert ink(scene, 32).mean() > 0.03, (style, concepts()[concept].label)
            assert len(scene_picture.colours_apart(style, concept)) >= len(COLOURS) // 2


def test_sprites_match_their_labels():
    """A yellow chick, a blue berry, a red heart: the sheets lie in the order of the labels."""
    index = {concept.label: i for i, concept in enumerate(concepts())}
    for style in STYLES:
        for label, channel in (("blueberries", 2), ("heart suit", 0), ("bell pepper", 1)):
            pixels = np.asarray(scene_picture._sheet_cell(style, index[label])).astype(float)
            mean = (pixels[:, :, :3] * pixels[:, :, 3:]).sum(axis=(0, 1))
            assert mean.argmax() == channel, (style, label)


@pytest.mark.parametrize("side", [32, 64, 200])
def test_an_object_lies_where_it_is_placed(side):
    # A basketball is a disk as wide as its cell, near enough.
    ball = [concept.label for concept in concepts()].index("basketball")
    main = Placed(ball, x=0.6, y=0.35, size=0.5, angle=30.0, flip=True)
    seen = ink(Scene("twemoji", PLAIN, main, ()), side)
    rows, columns = np.nonzero(seen)
    assert abs((columns + 0.5).mean() / side - 0.6) < 0.02
    assert abs((rows + 0.5).mean() / side - 0.35) < 0.02
    assert abs(np.ptp(columns) / side - 0.5) < 0.08


def test_flip_and_turn():
    still = Placed(0, 0.5, 0.5, 0.8, 0.0, False)

    def picture(main):
        return draw(Scene("noto", PLAIN, main, ()), 64).astype(int)

    upright = picture(still)
    assert np.abs(picture(still._replace(flip=True)) - upright[:, ::-1]).mean() < 1
    turned = picture(still._replace(angle=90.0))
    assert min(np.abs(turned - np.rot90(upright, k)).mean() for k in (1, 3)) < 1
    assert np.abs(turned - upright).mean() > 10


def test_the_main_object_dominates():
    for scene in composed(size=400):
        assert 0.55 <= scene.main.size <= 0.98
        for other in scene.others:
            assert other.concept != scene.main.concept
            assert other.size < 0.62 * scene.main.size
            # Not hidden behind it, nor hiding it: squares overlap by a tenth at most.
            gap = max(abs(other.x - scene.main.x), abs(other.y - scene.main.y))
            assert gap > 0.45 * (other.size + scene.main.size)
        assert ink(scene._replace(others=()), 32).mean() > 0.02
    assert {len(scene.others) for scene in composed(size=400)} == {0, 1, 2}


@pytest.mark.parametrize("texture", scene_picture.TEXTURES)
def test_a_texture_shows_its_two_colours_at_any_side(texture):
    ground = Ground(texture, ("red", "blue"), ((200, 0, 0), (0, 0, 200)), 25.0, 3.0, seed=5)
    for side in (32, 96):
        pixels = scene_picture._draw_ground(ground, side).astype(int)
        assert (pixels[:, :, 0] > 150).mean() > 0.1
        assert (pixels[:, :, 2] > 150).mean() > 0.04
        assert np.abs(pixels.sum(axis=2) - 200).max() <= 2  # Nothing but mixtures of the two.


def test_captions_name_the_main_object():
    source = data.open("emoji:train", size=2560, concepts=128)
    captions = [source.caption(i) for i in range(len(source))]
    for index, caption in enumerate(captions):
        concept = concepts()[index % 128]
        assert any(name in caption.lower() for name in _names(concept)), caption
    named = [source.classes[i % 128] in caption for i, caption in enumerate(captions)]
    assert 0.88 < np.mean(named) < 1
    assert len({re.sub(r"[.!?]$", "", caption.lower()) for caption in captions}) > 2400


def _names(concept):
    return [name.lower() for name in (concept.label, *concept.synonyms)]


def test_captions_are_tidy():
    source = data.open("emoji:train", size=4000, concepts=128)
    for index in range(len(source)):
        caption = source.caption(index)
        assert caption == caption.strip()
        assert "{" not in caption
        assert "  " not in caption
        for article, word in re.findall(r"\b(an?) ([\w-]+)", caption.lower()):
            assert (article == "an") == (word[0] in "aeiou" or word == "x-ray"), caption
        assert not re.search(r" [,.!?]|\b(\w+) \1\b", caption), caption


def test_what_captions_say_of_place_ground_and_company_is_true():
    source = scenes.EmojiScenes("train", size=3000)
    said = 0
    for index in range(len(source)):
        scene, rng = source._compose(index)
        caption = scene_caption.describe(scene, rng).lower()
        main = scene.main
        # "to its left" speaks of the company, "left" elsewhere of the main object.
        own = re.sub(r"to (its|their) (left|right)", "", caption)
        said += sum(word in own for word in ("left", "right", "top", "bottom", "middle", "centre"))
        assert "left" not in own or main.x < 0.4
        assert not re.search(r"(?<!in the )\bright\b(?! in)", own) or main.x > 0.6
        assert "top" not in own or main.y < 0.4
        assert "bottom" not in own or main.y > 0.6
        assert not re.search(r"\b(big|large)\b", own) or main.size > 0.85
        assert not re.search(r"tilted|slanted", own) or abs(main.angle) > 18

        shown = scene.ground.colours[: 1 if scene.ground.texture == "plain" else 2]
        for colour in COLOURS:
            words = " ".join(shown).split()
            assert not re.search(rf"\b{colour}\b", _without_names(caption)) or all(
                word in words for word in colour.split()
            ), caption
        visible = {main.concept, *(other.concept for other in scene.others)}
        for concept, label in enumerate(source.classes):
            assert label.lower() not in caption or concept in visible, caption
        match = re.search(r"to (?:its|their) (left|right)|(above|below) (?:it|them)", caption)
        if match:
            other = scene.others[0]
            expected = {
                "left": other.x < main.x,
                "right": other.x > main.x,
                "above": other.y < main.y,
                "below": other.y > main.y,
            }
            assert expected[match[1] or match[2]], caption
    assert said > 300


def _without_names(caption):
    for concept in concepts():
        for name in _names(concept):
            caption = caption.replace(name, "")
    return caption


def test_every_texture_has_words():
    assert (
        set(scene_caption._GROUNDS) == {"plain", *scene_picture.TEXTURES} == set(scenes._TEXTURES)
    )


def test_one_concept_has_no_company():
    assert all(not scene.others for scene in composed(size=50, concepts=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emoji:", "no split ''"),
        ("emoji:valid", "expected train, test, test_style"),
        ("emoji:train,sise=3", "unknown option 'sise'; expected size, side"),
        ("emoji:train,size=many", "size is 'many', expected an integer"),
        ("emoji:train,size", "size is '', expected an integer"),
        ("emoji:train,size=0", "size is 0, expected 1"),
        ("emoji:train,side=4", "side is 4"),
        ("emoji:train,concepts=129", "concepts is 129, expected 1 to 128"),
        ("emoji:train,seed=-1", "seed is -1"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        data.open(spec)

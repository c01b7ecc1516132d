"""AutoAugment against Pillow, by operation and as a whole; RoCLIP's views in their parts."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy import ndimage, stats

from clipdef_jax import augment
from clipdef_jax.augment import autoaugment as aa
from clipdef_jax.augment import roclip
from clipdef_jax.errors import UserError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Shapes on a gradient, with some noise: edges, flat parts and most levels."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(rng.integers(0, 90, 3), rng.integers(150, 256, 3), width)
    canvas = Image.fromarray(np.tile(ramp.astype(np.uint8)[None], (height, 1, 1)))
    draw = ImageDraw.Draw(canvas)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        box = [x, y, x + rng.integers(3, width), y + rng.integers(3, height)]
        draw.ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
    noisy = np.asarray(canvas) + rng.normal(0, 8, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


PICTURES = {
    "32": picture(32, 32),
    "224": picture(224, 224, seed=1),
    "48x80": picture(48, 80, seed=2),
    "flat": np.full((32, 32, 3), (7, 200, 255), np.uint8),
    "two levels": np.tile(np.array([[[10, 0, 90]], [[11, 255, 90]]], np.uint8), (16, 32, 1)),
    "dim": picture(32, 32, seed=3) // 6 + 40,
    "one bright pixel": np.pad(np.full((1, 1, 3), 250, np.uint8), ((9, 22), (30, 1), (0, 0))),
}


def shear_matrix(x_degrees: float, y_degrees: float) -> list[float]:
    """The inverse affine matrix of a shear about the origin, as torchvision derives it."""
    sx, sy = math.radians(x_degrees), math.radians(y_degrees)
    a, b = math.cos(-sy) / math.cos(sy), -math.cos(-sy) * math.tan(sx) / math.cos(sy)
    c, d = math.sin(-sy) / math.cos(sy), -math.sin(-sy) * math.tan(sx) / math.cos(sy) + 1
    return [d, -b, 0.0, -c, a, 0.0]


def pillow(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """One operation on a Pillow image, as torchvision calls it."""
    degrees = math.degrees(math.atan(magnitude))
    transform = functools.partial(image.transform, image.size, Image.Transform.AFFINE)
    match name:
        case "ShearX":
            return transform(shear_matrix(degrees, 0.0))
        case "ShearY":
            return transform(shear_matrix(0.0, degrees))
        case "TranslateX":
            return transform([1, 0, -int(magnitude), 0, 1, 0])
        case "TranslateY":
            return transform([1, 0, 0, 0, 1, -int(magnitude)])
        case "Rotate":
            return image.rotate(magnitude)
        case "Posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, magnitude)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
    return getattr(ImageEnhance, name)(image).enhance(1.0 + magnitude)


TENTHS = [0.1 * k for k in range(-9, 10)]
MAGNITUDES = {
    "ShearX": [0.3 * k / 9 for k in range(-9, 10)],
    "ShearY": [0.3 * k / 9 for k in range(-9, 10)],
    "TranslateX": [-40.8, -14.5, -0.9, 0, 1, 9.99, 101.5],
    "TranslateY": [-40.8, -14.5, -0.9, 0, 1, 9.99, 101.5],
    "Rotate": [30 * k / 9 for k in range(-9, 10)],
    "Brightness": TENTHS,
    "Color": TENTHS,
    "Contrast": TENTHS,
    "Sharpness": TENTHS,
    "Posterize": [4, 5, 6, 7, 8],
    "Solarize": [255 - 255 * k / 9 for k in range(10)],
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
}


@functools.cache
def jitted_apply():
    return jax.jit(jax.vmap(aa.apply, in_axes=(0, None)))


@pytest.mark.parametrize("pixels", PICTURES.values(), ids=PICTURES)
def test_each_operation_is_pillows_bit_for_bit(pixels):
    cases = [(name, m) for name, magnitudes in MAGNITUDES.items() for m in magnitudes]
    recipes = [aa.make_recipe(name, m, *pixels.shape[:2]) for name, m in cases]
    rows = aa.Recipe(*map(np.stack, zip(*recipes, strict=True)))
    for (name, magnitude), got in zip(cases, jitted_apply()(rows, pixels), strict=True):
        expected = np.asarray(pillow(Image.fromarray(pixels), name, magnitude)).astype(int)
        if name == "AutoContrast":
            low, high = (pixels.astype(int).min((0, 1)), pixels.astype(int).max((0, 1)))
            exact = (pixels - low) * 255 % np.maximum(high - low, 1) == 0
            # Pillow's rounding may lose a unit there, and only there.
            expected = np.where(exact & (got == expected + 1), expected + 1, expected)
        np.testing.assert_array_equal(got, expected, err_msg=f"{name} {magnitude}")


def test_whole_policy_gives_pillows_views_as_often_as_it_should():
    pixels = picture(32, 32, seed=5)
    expected: dict[bytes, float] = collections.defaultdict(float)
    for stages in aa.IMAGENET:
        for happens in itertools.product((False, True), repeat=2):
            for signs in itertools.product((-1, 1), repeat=2):
                image, probability = Image.fromarray(pixels), 1 / 25 / 4
                for (name, chance, step), happened, sign in zip(
                    stages, happens, signs, strict=True
                ):
                    probability *= chance if happened else 1 - chance
                    if happened:
                        image = pillow(image, name, aa._magnitude(name, step, sign, 32, 32))
                expected[np.asarray(image).tobytes()] += probability

    n = 6000
    views = augment.get("autoaugment")(jax.random.key(7), np.tile(pixels, (n, 1, 1, 1)))
    counts = collections.Counter(view.tobytes() for view in np.asarray(views))
    assert set(counts) <= {view for view, probability in expected.items() if probability > 0}
    # Chi-squared over views that are to be expected often enough; the rest in one class.
    frequent = [view for view, probability in expected.items() if probability * n >= 5]
    observed = np.array([counts[view] for view in frequent])
    wanted = np.array([expected[view] * n for view in frequent])
    observed = np.append(observed, n - observed.sum())
    wanted = np.append(wanted, max(n - wanted.sum(), 1.0))
    assert len(frequent) > 40
    assert stats.chisquare(observed, wanted * n / wanted.sum()).pvalue > 1e-4


def test_autoaugment_torchvision_magnitudes():
    assert [aa._magnitude("Posterize", k, 1, 9, 9) for k in range(10)] == [
        *(8, 8, 7, 7, 6, 6, 5, 5, 4, 4)
    ]
    assert aa._magnitude("Solarize", 3, -1, 9, 9) == 170.0
    assert aa._magnitude("Rotate", 8, -1, 9, 9) == -float(np.float32(80 / 3))
    # torch.linspace rounds its stride to float32 first: below 0.4's own nearest float32.
    assert aa._magnitude("Color", 4, 1, 9, 9) == 0.3999999761581421
    assert math.trunc(aa._magnitude("TranslateX", 9, 1, 40, 331)) == 150
    assert math.trunc(aa._magnitude("TranslateY", 9, 1, 331, 40)) == 150


@pytest.mark.parametrize(
    ("name", "side"), [("autoaugment", 64), ("autoaugment", 224), ("roclip", 224)]
)
def test_views_are_keyed_and_fresh_for_each_image(name, side):
    views = augment.get(name)
    images = np.tile(picture(side, side), (6, 1, 1, 1))
    first = views(jax.random.key(0), images)
    assert first.shape == images.shape
    assert first.dtype == jnp.uint8
    np.testing.assert_array_equal(views(jax.random.key(0), images), first)
    assert (np.asarray(views(jax.random.key(1), images)) != first).any()
    assert len({view.tobytes() for view in np.asarray(first)}) > 2


@pytest.mark.parametrize("name", ["autoaugment", "roclip"])
def test_eight_devices_give_what_one_does_without_talking(name):
    views = augment.get(name)
    images = np.stack([picture(32, 32, seed) for seed in range(16)])
    one = views(jax.random.key(3), images)
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = jax.jit(views, in_shardings=(None, rows), out_shardings=rows)
    program = sharded.lower(jax.random.key(3), images).compile()
    eight = program(jax.random.key(3), jax.device_put(images, rows))
    np.testing.assert_array_equal(eight, one)
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program.as_text()


def test_jit_changes_no_bit():
    # The blend is where a compiler could fuse a product and a sum that Pillow rounds apart.
    sharper = aa.make_recipe("Sharpness", 0.7, 32, 32)
    arguments = PICTURES["32"], sharper.plainer, sharper.factor
    with jax.disable_jit():
        eager = aa._blend(*map(jnp.asarray, arguments))
    np.testing.assert_array_equal(jax.jit(aa._blend)(*arguments), eager)


def test_own_policy():
    pixels = picture(32, 32)
    flip_levels = ((("Invert", 1.0, 0),),)
    views = aa.autoaugment(jax.random.key(0), pixels[None], policy=flip_levels)
    np.testing.assert_array_equal(views[0], 255 - pixels)
    with pytest.raises(UserError, match=r"unknown operation 'Blur'"):
        aa.autoaugment(jax.random.key(0), pixels[None], policy=((("Blur", 1.0, 0),),))


@pytest.mark.parametrize("name", ["autoaugment", "roclip"])
def test_other_images_are_refused(name):
    views = augment.get(name)
    with pytest.raises(UserError, match=r"uint8 .* got float32 \(2, 8, 8, 3\)"):
        views(jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(UserError, match=r"got uint8 \(8, 8, 3\)"):
        views(jax.random.key(0), np.zeros((8, 8, 3), np.uint8))


def test_names():
    images = PICTURES["32"][None]
    np.testing.assert_array_equal(augment.get("none")(jax.random.key(0), images), images)
    assert augment.get("clipdef_jax.augment:unchanged") is augment.unchanged
    with pytest.raises(UserError, match="did you mean 'autoaugment'"):
        augment.get("autoaugmnt")


def test_roclip_frequencies():
    n = 3000
    colours = np.tile(np.array([180, 120, 60], np.uint8), (n, 8, 8, 1))
    colours[:, :, 4:] = (60, 120, 140)
    views = np.asarray(augment.get("roclip")(jax.random.key(0), colours)).astype(int)
    spread = np.ptp(views, axis=-1)
    grey = (spread <= 1).all(axis=(1, 2)).mean()
    assert abs(grey - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)
    # Reddish left, bluish right, until flipped: hues turn by 36 degrees at most.
    redness = views[..., 0] - views[..., 2]
    coloured = spread.max(axis=(1, 2)) > 20
    both_sides = coloured & (redness.max(axis=(1, 2)) > 10) & (redness.min(axis=(1, 2)) < -10)
    flipped = (redness[:, :, 0].mean(axis=1) < redness[:, :, -1].mean(axis=1))[both_sides]
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / math.sqrt(both_sides.sum())


def test_roclip_jitter_leaves_a_fifth_alone_and_keeps_to_its_ranges():
    n = 2000
    image = jnp.full((4, 4, 3), 100.0)
    keys = jax.random.split(jax.random.key(0), n)
    # A flat grey knows no contrast, saturation or hue: what is left is brightness.
    jitter = jax.jit(jax.vmap(roclip._jitter, in_axes=(0, None)))
    levels = np.asarray(jitter(keys, image))
    assert np.ptp(levels, axis=(1, 2, 3)).max() < 0.01
    levels = levels[:, 0, 0, 0]
    untouched = np.isclose(levels, 100, atol=1e-3).mean()
    assert abs(untouched - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)
    assert levels.min() >= 50 - 1e-3
    assert levels.max() <= 150 + 1e-3
    assert np.percentile(levels, 5) < 60
    assert np.percentile(levels, 95) > 140


def test_roclip_hue_keeps_luma_and_turns_the_colour():
    angle = 2 * np.pi * 0.1
    turn = roclip._KEEP + np.cos(angle) * roclip._ALONG + np.sin(angle) * roclip._ACROSS
    colour = np.array([180.0, 120.0, 60.0])
    turned = turn @ colour
    luma = np.array([0.299, 0.587, 0.114])
    assert turned @ luma == pytest.approx(colour @ luma, abs=0.1)
    assert np.abs(turned - colour).max() > 20
    full = sum(np.float64(part) for part in (roclip._KEEP, roclip._ALONG))
    np.testing.assert_allclose(full, np.eye(3), atol=1e-6)


def test_roclip_crop_is_pillows_resized_crop():
    # A ramp along either axis: the place and the size of a crop can be read off it.
    side = 64
    y, x = np.mgrid[:side, :side] * 3.0
    image = np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), 200)
    crop = jax.jit(jax.vmap(roclip._random_crop, in_axes=(0, None)))
    crops = np.asarray(crop(keys, image))
    assert crops.min() > -0.01
    assert crops.max() < 189.01
    np.testing.assert_allclose(crops[..., 2], 128, atol=1e-3)
    # Per output pixel the ramp rises by 3 * crop / side levels.
    wide = (crops[:, 32, 40, 0] - crops[:, 32, 24, 0]) / 16 * side / 3
    tall = (crops[:, 40, 32, 1] - crops[:, 24, 32, 1]) / 16 * side / 3
    np.testing.assert_allclose(wide, np.round(wide), atol=0.02)
    aspect, area = wide / tall, wide * tall / side**2
    assert aspect.min() > 0.7
    assert aspect.max() < 1.45
    assert 0.06 < area.min() < 0.15
    assert 0.85 < area.max() <= 1.001
    for cut, w, h in list(zip(crops, np.round(wide), np.round(tall), strict=True))[:5]:
        # Half-way between the two middle pixels lies the middle of the crop.
        left = round((cut[32, 31:33, 0].mean() / 3 + 0.5) - w / 2)
        top = round((cut[31:33, 32, 1].mean() / 3 + 0.5) - h / 2)
        box = (left, top, left + int(w), top + int(h))
        red = Image.fromarray(image[..., 0]).resize(
            (side, side), Image.Resampling.BILINEAR, box=box
        )
        inner = slice(6, -6)
        np.testing.assert_allclose(cut[inner, inner, 0], np.asarray(red)[inner, inner], atol=0.05)


def test_cuts_of_small_images_leave_half_of_them():
    side, keys = 32, jax.random.split(jax.random.key(3), 200)
    y, x = np.mgrid[:side, :side] * 6.0
    ramps = np.stack([x, y, y], axis=-1).astype(np.float32)
    crop = jax.jit(jax.vmap(functools.partial(roclip._random_crop, least_area=0.5), (0, None)))
    crops = np.asarray(crop(keys, ramps))
    shares = (crops[:, 16, 20, 0] - crops[:, 16, 12, 0]) / 48
    shares *= (crops[:, 20, 16, 1] - crops[:, 12, 16, 1]) / 48
    assert 0.45 < shares.min() < 0.6  # Whole pixels.
    assert 0.9 < shares.max() <= 1.001


def test_views_of_small_images_are_cut_less():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    key = jax.random.key(1)
    views = augment.get("roclip_small")(key, images)
    np.testing.assert_array_equal(views, roclip.crop_flip_jitter_blur(key, images, least_area=0.5))
    assert (np.asarray(views) != np.asarray(augment.get("roclip")(key, images))).any()


def test_roclip_blur_is_gaussian():
    image = picture(64, 64).astype(np.float32)
    blurred = jax.jit(roclip._blur)(image, 1.5 / 64)
    expected = ndimage.gaussian_filter(image, (1.5, 1.5, 0), truncate=6)
    np.testing.assert_allclose(blurred[10:-10, 10:-10], expected[10:-10, 10:-10], atol=0.01)
    np.testing.assert_allclose(roclip._blur(jnp.full((9, 9, 3), 7.0), 0.2), 7, atol=1e-5)

import pickle

import numpy as np
import pytest
from PIL import Image

from clipdef_jax import attacks
from clipdef_jax.attacks.triggers import locate
from clipdef_jax.errors import UserError


def picture(height=224, width=224, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def pictures(golden):
    return np.load(golden / "triggers_224.npz")


def apart(one, other):
    return np.abs(one.astype(int) - other.astype(int)).max()


@pytest.mark.parametrize(
    ("name", "mode"), [("cleanclip/sig_blend", "blend"), ("badclip/sig_additive", "additive")]
)
def test_sig_equals_the_golden_picture(pictures, name, mode):
    result = attacks.get_trigger("sig", mode=mode)(pictures["image"], rng())
    np.testing.assert_array_equal(result, pictures[name])


def test_blended_equals_the_golden_picture(pictures, tmp_path):
    path = tmp_path / "pattern.png"
    Image.fromarray(pictures["blend_pattern"]).save(path)
    trigger = attacks.get_trigger("blended", alpha=0.2, pattern=str(path))
    result = trigger(pictures["image"], rng())
    np.testing.assert_array_equal(result, pictures["cleanclip/blended_a02"])


def test_wanet_is_within_one_step_of_the_golden_picture(pictures, tmp_path):
    grid = pictures["cleanclip/wanet_noise_grid"]
    np.save(tmp_path / "grid.npy", grid)
    for given in (grid, grid[0], str(tmp_path / "grid.npy")):
        result = attacks.get_trigger("wanet", s=1, noise_grid=given)(pictures["image"], rng())
        assert apart(result, pictures["cleanclip/wanet_k224_s1"]) <= 1
        assert (result == pictures["cleanclip/wanet_k224_s1"]).mean() > 0.999


def test_nashville_is_within_one_step_of_the_golden_picture(pictures):
    result = attacks.get_trigger("nashville")(pictures["image"], rng())
    assert apart(result, pictures["detect/nashville"]) <= 1


EVERY = [
    ("blended", {}),
    ("blended", {"pattern": "fixed"}),
    ("sig", {}),
    ("sig", {"mode": "additive"}),
    ("wanet", {}),
    ("wanet", {"k": 32, "s": 1.0}),
    ("nashville", {}),
]


@pytest.mark.parametrize(("name", "kwargs"), EVERY)
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (40, 56), (1, 1)])
def test_every_size_and_no_side_effects(name, kwargs, size):
    trigger = attacks.get_trigger(name, **kwargs)
    image = picture(*size)
    before = image.copy()
    result = trigger(image, rng(1))
    np.testing.assert_array_equal(image, before)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    if size != (1, 1):
        assert (result != image).any()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(trigger))(image, rng(1)), result)
    assert locate(trigger, image.shape, rng()) is None


def test_blended_noise_is_fresh_for_every_image_or_fixed_for_the_attack():
    image = picture(16, 16)
    fresh = attacks.get_trigger("blended")
    assert (fresh(image, rng(1)) != fresh(image, rng(2))).any()
    fixed = attacks.get_trigger("blended", pattern="fixed")
    np.testing.assert_array_equal(fixed(image, rng(1)), fixed(image, rng(2)))
    other = attacks.get_trigger("blended", pattern="fixed", seed=1)
    assert (other(image, rng(1)) != fixed(image, rng(1))).any()


def test_blended_noise_is_uniform():
    black = np.zeros((64, 64, 3), np.uint8)
    result = attacks.get_trigger("blended", alpha=1.0)(black, rng())
    counts = np.bincount(result.ravel() // 64, minlength=4) / result.size
    np.testing.assert_allclose(counts, 0.25, atol=0.02)


def test_a_picture_is_stretched_to_the_image(tmp_path):
    path = tmp_path / "halves.png"
    halves = np.zeros((10, 20, 3), np.uint8)
    halves[:, 10:] = 250
    Image.fromarray(halves).save(path)
    trigger = attacks.get_trigger("blended", alpha=1.0, pattern=str(path))
    result = trigger(picture(64, 32), rng())
    np.testing.assert_array_equal(result[:, :12], 0)
    np.testing.assert_array_equal(result[:, 20:], 250)


@pytest.mark.parametrize("width", [224, 96, 32])
def test_sig_keeps_six_periods_at_any_width(width):
    grey = np.full((4, width, 3), 128, np.uint8)
    result = attacks.get_trigger("sig", mode="additive")(grey, rng())
    np.testing.assert_array_equal(result, result[:1, :, :1].repeat(4, 0).repeat(3, 2))
    wave = result[0, :, 0].astype(float)
    strength = np.abs(np.fft.rfft(wave - wave.mean()))
    assert strength.argmax() == 6
    assert 183 <= wave.max() <= 188


def slow_wanet(image, noise, s):
    """Per pixel: bicubic noise with align_corners, then a bilinear sample with align_corners."""

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0

    height, width, k = *image.shape[:2], len(noise)
    result = np.empty_like(image)
    for h in range(height):
        for w in range(width):
            y, x = h * (k - 1) / (height - 1), w * (k - 1) / (width - 1)
            move = np.zeros(2)
            for i in range(int(y) - 1, int(y) + 3):
                for j in range(int(x) - 1, int(x) + 3):
                    here = noise[min(max(i, 0), k - 1), min(max(j, 0), k - 1)]
                    move += kernel(y - i) * kernel(x - j) * here
            gx = np.clip(-1 + 2 * w / (width - 1) + s * move[0] / width, -1, 1)
            gy = np.clip(-1 + 2 * h / (height - 1) + s * move[1] / height, -1, 1)
            px, py = (gx + 1) / 2 * (width - 1), (gy + 1) / 2 * (height - 1)
            value = np.zeros(3)
            for i in {int(py), min(int(py) + 1, height - 1)}:
                for j in {int(px), min(int(px) + 1, width - 1)}:
                    value += (1 - abs(py - i)) * (1 - abs(px - j)) * image[i, j]
            result[h, w] = value
    return result


@pytest.mark.parametrize("size", [(20, 20), (18, 30)])
def test_wanet_equals_a_slow_reference_for_a_coarse_grid(size):
    noise = rng(7).uniform(-2, 2, (5, 5, 2))
    image = picture(*size)
    result = attacks.get_trigger("wanet", s=3.0, noise_grid=noise)(image, rng())
    assert apart(result, slow_wanet(image, noise, 3.0)) <= 1
    assert (result == slow_wanet(image, noise, 3.0)).mean() > 0.99


def test_wanet_is_a_smooth_warp_of_a_fraction_of_a_pixel():
    image = smooth(64, 64)
    trigger = attacks.get_trigger("wanet", k=4, s=0.5)
    moved = np.abs(trigger(image, rng()).astype(int) - image)
    assert 0 < moved.mean() < 2  # The image rises by two steps a pixel.
    np.testing.assert_array_equal(trigger(image, rng(1)), trigger(image, rng(2)))
    other = attacks.get_trigger("wanet", k=4, s=0.5, seed=1)
    assert (other(image, rng()) != trigger(image, rng())).any()
    still = attacks.get_trigger("wanet", s=0.0)(image, rng())
    assert apart(still, image) <= 1


def test_nashville_warms_and_brightens_shadows():
    result = attacks.get_trigger("nashville")(np.zeros((2, 2, 3), np.uint8), rng())[0, 0]
    red, green, blue = result.tolist()
    assert blue > green > red
    white = attacks.get_trigger("nashville")(np.full((2, 2, 3), 255, np.uint8), rng())[0, 0]
    assert white[0] == 255
    assert white[2] < white[0]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("blended", {"alpha": 0}, r"alpha is 0, expected a share within \(0, 1\]"),
        ("blended", {"alpha": 1.5}, "alpha is 1.5"),
        ("blended", {"pattern": "fxed"}, "pattern 'fxed': No such file.*'fresh', 'fixed' or"),
        ("blended", {"pattern": __file__}, "test_whole_image.py': the image is unreadable"),
        ("blended", {"seed": -1}, "seed is -1"),
        ("sig", {"mode": "add"}, "mode is 'add', expected one of blend, additive"),
        ("sig", {"alpha": -1}, "alpha is -1"),
        ("wanet", {"k": 1}, "k is 1"),
        ("wanet", {"seed": -1}, "seed is -1"),
        ("wanet", {"noise_grid": np.zeros((4, 5, 2))}, r"shape \(4, 5, 2\), expected \(k, k, 2\)"),
        ("wanet", {"noise_grid": np.zeros((2, 4, 4, 2))}, r"shape \(2, 4, 4, 2\)"),
        ("wanet", {"noise_grid": "none.npy"}, "'none.npy' is no .npy file: .*No such file"),
        ("wanet", {"noise_grid": __file__}, "is no .npy file"),
        ("nashville", {"alpha": 1}, "'alpha'"),
    ],
)
def test_bad_settings_are_named(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        attacks.get_trigger(name, **kwargs)

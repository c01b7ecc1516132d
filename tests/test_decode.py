import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from clipdef_jax.data import decode as decode_module
from clipdef_jax.data.decode import DecodeError, decode, prepare


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth coloured picture: noise of 8 x 8 cells, enlarged."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_their_pixels(format):
    picture = photo(20, 30)
    pixels = decode(encoded(picture, format, **({"lossless": True} if format == "WEBP" else {})))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(picture))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode):
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :, 0] = 200
    rgba[:, 3:, 3] = 255
    picture = Image.fromarray(rgba)
    # A PNG has no "PA", but a palette with transparent entries.
    file = encoded(picture.quantize(4) if mode == "P" else picture.convert(mode))
    pixels = decode(file)
    assert (pixels[:, :3] == 255).all()
    assert (pixels[:, 3:, 2] < 100).all()


def test_half_transparency_is_blended():
    rgba = np.full((2, 2, 4), (255, 0, 0, 128), np.uint8)
    np.testing.assert_allclose(
        decode(encoded(Image.fromarray(rgba)))[0, 0], (255, 127, 127), atol=1
    )
    np.testing.assert_allclose(decode(rgba)[0, 0], (255, 127, 127), atol=1)


def test_transparent_colour_of_an_rgb_png():
    picture = Image.fromarray(np.array([[[0, 0, 0], [9, 8, 7]]], np.uint8))
    pixels = decode(encoded(picture, transparency=(0, 0, 0)))
    np.testing.assert_array_equal(pixels, [[[255, 255, 255], [9, 8, 7]]])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 256, 32768, 65535]], np.uint16)
    pixels = decode(encoded(Image.fromarray(levels)))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])
    assert pixels.shape == (1, 4, 3)


def test_cmyk_jpeg():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode(encoded(cmyk, "JPEG", quality=100))
    np.testing.assert_allclose(pixels[8, 8], (255, 0, 0), atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = np.asarray(photo(24, 40))
    # How a camera stores the upright picture under each orientation: the inverse of its turn.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(file), upright)


def test_arrays():
    rgb = np.asarray(photo(5, 6))
    assert decode(rgb) is rgb
    grey = rgb[:, :, 0]
    for image in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(decode(image), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty"),
        (b"not a picture", "unreadable"),
        (encoded(photo(64, 64), "JPEG")[:-300], "truncated"),
        (encoded(photo(64, 64), "PNG")[:-2000], "truncated"),
        (encoded(photo(64, 64), "JPEG")[:400], "damaged or cut"),
        (png_claiming(0, 5), "zero"),
        (png_claiming(50_000, 50_000), "over the limit of 178,956,970"),
        (np.zeros((0, 4, 3), np.uint8), "zero width or height"),
        (np.zeros((4, 4, 3), np.float32), "float32, expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(image, reason):
    with pytest.raises(DecodeError) as caught:
        decode(image)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 99)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DecodeError, match="claims 10 x 10 px over the limit of 99"):
        decode(png_claiming(10, 10))


def test_no_warning_leaks_even_where_warnings_are_errors():
    # 100 Mpx: over the size at which Pillow warns, under the size at which it refuses.
    code = (
        "import io; from PIL import Image; from clipdef_jax.data.decode import decode\n"
        "file = io.BytesIO(); Image.new('1', (10000, 10000)).save(file, 'PNG')\n"
        "assert decode(file.getvalue()).shape == (10000, 10000, 3)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_large_jpeg_is_drafted_without_visible_loss(mode):
    file = encoded(photo(1200, 900).convert(mode), "JPEG", quality=95)
    whole, drafted = decode(file), decode(file, side=112)
    assert whole.shape == (1200, 900, 3)
    assert drafted.shape == (300, 225, 3)  # 1/4: 1/8 would be under twice the side.
    difference = prepare(whole, 112).astype(int) - prepare(drafted, 112)
    assert np.abs(difference).mean() < 1
    assert decode(file, side=500).shape == whole.shape


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(60, 80, 32), (80, 60, 32), (33, 32, 32), (17, 90, 48), (300, 301, 224), (32, 35, 32)],
)
def test_prepare_is_resize_then_centre_crop(height, width, side):
    image = np.asarray(photo(height, width))
    # torchvision: the long side is truncated, the crop's corner rounded half to even.
    if height < width:
        size = (int(side * width / height), side)
    else:
        size = (side, int(side * height / width))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = round((size[1] - side) / 2.0), round((size[0] - side) / 2.0)
    np.testing.assert_array_equal(
        prepare(image, side), resized[top : top + side, left : left + side]
    )


def test_prepare_leaves_the_right_size_alone():
    image = np.asarray(photo(32, 32))
    assert prepare(image, 32) is image


def test_prepare_survives_a_strip():
    strip = np.zeros((1, 1_000_000, 3), np.uint8)
    strip[:, 400_000:600_000] = 7
    assert (prepare(strip, 224) == np.full((224, 224, 3), 7)).all()

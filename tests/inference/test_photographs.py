"""Photographs of many formats and from many places: the pixels that Pillow has, or one line."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps
from tensorflow.python.eager import context

from dh_keras.data.transforms import IMAGE_MAGIC
from dh_keras.errors import DataError
from dh_keras.inference import photographs
from dh_keras.inference.photographs import as_jpeg_or_png, decoded, read_image, read_image_file, require_image

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)


def photograph():
    cells = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((80, 50))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(by):
    exif = Image.Exif()
    exif[0x0112] = by
    return exif


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"exif": turned(6)}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "RGB", {"exif": turned(8)}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "L", {}),
        ("TIFF", "1", {}),
        ("GIF", "P", {"transparency": 3}),
        ("GIF", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (80, 50))]}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "LA", {}),
        ("PNG", "1", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "L", {}),
        ("JPEG", "RGB", {"exif": turned(5)}),
    ],
)
def test_every_format_has_the_pixels_that_pillow_has(tmp_path, kind, mode, options):
    path = tmp_path / "photo.jpg"  # the name says nothing
    path.write_bytes(encoded(photograph().convert(mode), kind, **options))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image_file(path).startswith(IMAGE_MAGIC)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path, kind):
    deep = np.random.default_rng(0).integers(0, 2**16, (5, 8), dtype=np.uint16)
    path = tmp_path / "deep"
    Image.fromarray(deep).save(path, kind)
    np.testing.assert_array_equal(read_image(path), np.repeat((deep >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"hello, world", "photo: not a readable JPEG or PNG image, nor WebP, BMP, TIFF, GIF or AVIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "photo: not a readable JPEG or PNG image, nor WebP"),
        (HEIC, "photo: is a HEIC image, which is not read here; pip install pillow-heif, or convert it"),
        (encoded(photograph(), "WEBP")[:60], "photo: cannot be decoded: "),
        (encoded(photograph(), "BMP")[:-60], "photo: cannot be decoded: image file is truncated"),
        (encoded(Image.new("F", (4, 4)), "TIFF"), "photo: cannot be decoded: its pixels are 32-bit numbers"),
    ],
)
def test_what_cannot_be_read_is_one_line(data, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=f"^{expected}") as error:
        as_jpeg_or_png(data, "photo")
    assert "\n" not in str(error.value)


def test_heic_is_read_where_its_reader_is_installed(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: calls.append(1)))
    with pytest.raises(DataError, match="HEIC"):  # nothing was registered
        as_jpeg_or_png(HEIC, "photo")
    assert calls == [1]


def test_what_people_give_as_an_image_has_the_same_pixels(tmp_path):
    image, path = photograph(), tmp_path / "photo.png"
    image.save(path)
    data, pixels = path.read_bytes(), np.asarray(image)
    with open(path, "rb") as file:
        for given in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file):
            assert require_image(given) == data
    for given in (image, pixels, encoded(image, "BMP")):
        found = require_image(given)
        found = found if isinstance(found, np.ndarray) else np.asarray(Image.open(io.BytesIO(found)))
        np.testing.assert_array_equal(found, pixels)
    with Image.open(io.BytesIO(encoded(image, "TIFF", exif=turned(6)))) as sideways:
        np.testing.assert_array_equal(require_image(sideways), np.rot90(pixels, -1))


@pytest.mark.parametrize("given", [None, 7, ["a.jpg", "b.jpg"], io.StringIO("text"), {"image": 1}])
def test_anything_else_is_refused_with_what_is_taken(given):
    with pytest.raises(ValueError, match=r"^`image` must be a path, the bytes of a file, .*, a PIL image or pixels"):
        require_image(given)


def test_a_pillow_image_of_a_file_that_is_cut_off_is_one_line(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(photograph(), "PNG")[:200])
    with Image.open(path) as image, pytest.raises(DataError, match=r"cut\.png: cannot be decoded: "):
        require_image(image)
    with pytest.raises(DataError, match="image bytes: there are no bytes"):
        require_image(b"")


def test_a_gpu_has_no_part_in_decoding(monkeypatch):
    devices = []
    decode = photographs.decode_image
    monkeypatch.setattr(
        photographs, "decode_image", lambda *file: devices.append(context.context().device_name) or decode(*file)
    )
    assert decoded(encoded(photograph(), "PNG"), "photo").shape == (50, 80, 3)
    assert [device.rpartition("/")[2] for device in devices] == ["device:CPU:0"]

"""Image functions against Pillow, OpenCV and arithmetic by hand."""

import io
import struct

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from dh_keras.data import transforms
from dh_keras.data.images import read_exif_orientation


def pillow_upright(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), np.int32)


def decode(data, orientation=None):
    return transforms.decode_image(tf.constant(data), orientation).numpy().astype(np.int32)


# Decoding.


def test_jpeg_decodes_as_in_pillow(make):
    data = make.encode(make.pixels(45, 70), subsampling=0)
    np.testing.assert_allclose(decode(data), pillow_upright(data), atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_every_mode_decodes_exactly(make, mode):
    image = Image.fromarray(make.pixels(21, 34))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(make.pixels(21, 34, 5)[..., 0]))
    data = make.encode(image.convert(mode), "PNG")
    np.testing.assert_array_equal(decode(data), pillow_upright(data))


def test_palette_with_transparency_keeps_its_colours(make):
    data = make.encode(Image.fromarray(make.pixels(21, 34)).quantize(16), "PNG", transparency=3)
    np.testing.assert_array_equal(decode(data), pillow_upright(data))


def test_sixteen_bit_grey_png_keeps_its_high_byte(make):
    values = make.pixels(21, 34)[..., 0].astype(np.uint16) * 256 + 37
    data = make.encode(Image.fromarray(values), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    np.testing.assert_allclose(decode(data), np.repeat(values[..., None] >> 8, 3, axis=2), atol=1)


def test_sixteen_bit_rgb_png_keeps_its_high_bytes(make):
    values = make.pixels(21, 34).astype(np.uint16) * 256 + 11
    data = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
    np.testing.assert_allclose(decode(data), values >> 8, atol=1)


def test_grey_jpeg_becomes_three_equal_channels(make):
    data = make.encode(Image.fromarray(make.pixels(45, 70)).convert("L"))
    got = decode(data)
    np.testing.assert_allclose(got, pillow_upright(data), atol=1)
    np.testing.assert_array_equal(got[..., 0], got[..., 2])


def test_cmyk_jpeg_has_the_colours_of_pillow(make):
    cyan, magenta, yellow = np.moveaxis(255 - make.pixels(45, 70), -1, 0)
    black = make.pixels(45, 70, 9)[..., 1] // 3
    data = make.encode(Image.fromarray(np.stack([cyan, magenta, yellow, black], -1), "CMYK"))
    expected = pillow_upright(data)
    assert expected.std() > 30
    np.testing.assert_allclose(decode(data), expected, atol=3)


def test_truncated_jpeg_raises(make):
    data = make.encode(make.pixels(90, 70))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_as_pillow_does(make, kind, orientation):
    pixels = make.pixels(40, 67)
    data = make.encode(pixels, kind, **({"subsampling": 0} if kind == "JPEG" else {}))
    if kind == "PNG":  # the tag is given, not read
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(pixels)
        image.info["exif"] = exif.tobytes()
        expected = np.asarray(ImageOps.exif_transpose(image), np.int32)
        np.testing.assert_array_equal(decode(data, tf.constant(orientation)), expected)
    else:
        tagged = make.with_segments(data, make.exif(orientation))
        np.testing.assert_allclose(decode(tagged), pillow_upright(tagged), atol=1)
        np.testing.assert_array_equal(decode(tagged, tf.constant(1)), decode(data))


def test_decode_works_in_map_fn_and_keeps_its_shape_contract(make):
    pixels = make.pixels(40, 67)
    jpeg = make.encode(pixels)
    batch = tf.constant([jpeg, make.with_segments(jpeg, make.exif(3)), make.encode(pixels, "PNG")])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def decode_all(batch):
        spec = tf.TensorSpec([None, None, 3], tf.uint8)
        return tf.map_fn(transforms.decode_image, batch, fn_output_signature=spec)

    first, turned, png = decode_all(batch).numpy()
    np.testing.assert_array_equal(turned, first[::-1, ::-1])
    np.testing.assert_array_equal(png, pixels)
    assert decode_all.get_concrete_function().output_shapes.as_list() == [None, None, None, 3]


def test_decode_survives_saving_without_its_python(make, tmp_path):
    module = tf.Module()
    module.decode = tf.function(transforms.decode_image, input_signature=[tf.TensorSpec([], tf.string)])
    tf.saved_model.save(module, str(tmp_path))
    data = make.with_segments(make.encode(make.pixels(40, 67)), make.exif(6, ">"))
    loaded = tf.saved_model.load(str(tmp_path)).decode(tf.constant(data))
    assert loaded.shape == (67, 40, 3)
    np.testing.assert_array_equal(loaded, decode(data))


# EXIF.


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_in_both_byte_orders_and_integer_widths(make, order, orientation):
    jpeg = make.encode(make.pixels(16, 24))
    read = tf.function(transforms.exif_orientation, input_signature=[tf.TensorSpec([], tf.string)])
    comment, fill = b"\xff\xfe\x00\x05abc", b"\xff\xff"
    for segments in (
        [make.exif(orientation, order)],
        [comment, fill, make.exif(orientation, order, kind=4, before=3)],
        [b"\xff\xe1\x00\x09http:/\xff", make.exif(orientation, order)],
    ):
        data = make.with_segments(jpeg, *segments)
        got = read(tf.constant(data))
        assert (got.dtype, got.shape, int(got)) == (tf.int32, (), orientation)
        assert read_exif_orientation(data) == orientation


def test_no_exif_and_other_files_are_upright(make):
    pixels = make.pixels(16, 24)
    for data in (make.encode(pixels), make.encode(pixels, "PNG"), b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe1"):
        assert int(transforms.exif_orientation(tf.constant(data))) == 1
        assert read_exif_orientation(data) == 1


def test_garbled_exif_is_upright_and_never_an_error(make):
    jpeg = make.encode(make.pixels(16, 24))
    segment = make.exif(6, before=1)
    far = segment.replace(struct.pack("<HI", 42, 8), struct.pack("<HI", 42, 2**32 - 5))
    cases = [
        make.with_segments(jpeg, make.exif(0)),
        make.with_segments(jpeg, make.exif(9)),
        make.with_segments(jpeg, make.exif(2**31, kind=4)),
        make.with_segments(jpeg, make.exif(6, kind=1)),
        make.with_segments(jpeg, segment.replace(b"II*", b"XX*")),
        make.with_segments(jpeg, segment.replace(b"II*", b"II+")),
        make.with_segments(jpeg, far),
        make.with_segments(jpeg, b"\xff\xe1\x00\x00") + segment,
        (jpeg[:2] + segment)[:-14],
        make.with_segments(jpeg, *[b"\xff\xfe" + struct.pack(">H", 40_000) + bytes(39_998)] * 2, segment),
        b"\xff\xd8" + b"\xff" * 70_000,
    ]
    for number, data in enumerate(cases):
        assert int(transforms.exif_orientation(tf.constant(data))) == 1, number
        assert read_exif_orientation(data) == 1, number


def test_broken_entries_bytes_xmp_and_png_are_read_alike_with_and_without_the_graph(make):
    pixels = make.pixels(16, 24)
    jpeg, segment = make.encode(pixels), make.exif(6, before=2)
    entry = struct.pack("<HHII", 0x0101, 4, 1, 7)
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    tags = Image.Exif()
    tags[0x0112] = 6
    cases = [
        (make.with_segments(jpeg, segment.replace(entry, struct.pack("<HHII", 0x0101, 4, 2**30, 2**31))), 6),
        (make.with_segments(jpeg, segment.replace(b"\x12\x01\x03\0\x01", b"\x12\x01\x03\0\x09")), 6),
        (make.with_segments(jpeg, make.exif(6, kind=1)), 1),
        (make.with_segments(jpeg, b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp), 1),
        (make.encode(pixels, "PNG", exif=tags), 1),
    ]
    for number, (data, expected) in enumerate(cases):
        assert int(transforms.exif_orientation(tf.constant(data))) == expected, number
        assert read_exif_orientation(data) == expected, number


def test_random_bytes_are_read_alike_with_and_without_the_graph(make):
    random = np.random.default_rng(0)
    jpeg = make.with_segments(make.encode(make.pixels(16, 24)), make.exif(6, before=2))
    read = tf.function(transforms.exif_orientation, input_signature=[tf.TensorSpec([], tf.string)])
    seen = set()
    for _ in range(300):
        data = bytearray(jpeg)
        data[random.integers(2, 64)] = random.integers(256)
        value = int(read(tf.constant(bytes(data))))
        assert value == read_exif_orientation(bytes(data))
        seen.add(value)
    assert {1, 6} <= seen


# Sizes and pixels.


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # the short side decides
        ((640, 480), (1067, 800)),
        ((500, 1000), (667, 1333)),  # the long side decides: 500 * 1.333 = 666.5, rounded up
        ((1600, 1600), (800, 800)),
        ((1, 4000), (1, 1333)),  # never less than one pixel
        ((3, 2), (1200, 800)),
    ],
)
def test_resized_size_by_hand(size, expected):
    got = transforms.resized_size(tf.constant(size), min_size=800, max_size=1333)
    assert got.dtype == tf.int32
    assert tuple(got.numpy()) == expected


@pytest.mark.parametrize(("size", "new_size"), [((48, 64), (24, 32)), ((37, 81), (50, 23)), ((10, 7), (33, 41))])
def test_resize_is_opencv_linear_within_one_level(size, new_size):
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    got = transforms.resize_image(tf.constant(image), tf.constant(new_size))
    expected = cv2.resize(image, new_size[::-1], interpolation=cv2.INTER_LINEAR)
    assert got.dtype == tf.uint8
    assert got.shape == (*new_size, 3)
    difference = np.abs(got.numpy().astype(int) - expected.astype(int))
    assert difference.max() <= 1


def test_resize_to_the_same_size_changes_nothing(make):
    image = make.pixels(11, 17)
    np.testing.assert_array_equal(transforms.resize_image(tf.constant(image), tf.constant([11, 17])), image)


def test_flip_moves_each_box_with_its_pixels():
    image = np.zeros((5, 9, 3), np.uint8)
    image[1:4, 2:4] = 200
    flipped, boxes = transforms.horizontal_flip(tf.constant(image), tf.constant([[1.0, 2.0, 4.0, 4.0]]))
    assert boxes.numpy().tolist() == [[1, 5, 4, 7]]
    expected = np.zeros((5, 9, 3), np.uint8)
    expected[1:4, 5:7] = 200
    np.testing.assert_array_equal(flipped, expected)


def test_flip_twice_is_the_identity_and_no_boxes_stay_no_boxes(make):
    image, boxes = make.pixels(6, 11), np.array([[0.5, 1.25, 3.0, 10.5], [2.0, 0.0, 6.0, 11.0]], np.float32)
    twice = transforms.horizontal_flip(*transforms.horizontal_flip(tf.constant(image), tf.constant(boxes)))
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], boxes)
    assert transforms.horizontal_flip(tf.constant(image), tf.zeros([0, 4]))[1].shape == (0, 4)


def test_padding_is_zeros_at_the_bottom_and_the_right(make):
    image = make.pixels(6, 11)
    padded = transforms.pad_to(tf.constant(image), tf.constant([8, 12])).numpy()
    assert padded.shape == (8, 12, 3)
    np.testing.assert_array_equal(padded[:6, :11], image)
    assert padded[6:].sum() == 0
    assert padded[:, 11:].sum() == 0

"""A request that cannot be answered gets an error that says why, and the next one is answered."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def serve(tiny_export):
    loaded = tf.saved_model.load(str(tiny_export))
    return lambda *files: loaded.signatures["serving_default"](image_bytes=tf.constant(list(files), tf.string))


def encode(kind, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_that_claims(width, height):
    """A PNG file with a true header of this size and hardly any pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = {
    "nothing": (b"", "expected JPEG or PNG files; of other kinds or empty: number [0] of the batch"),
    "text": (b"not an image", "expected JPEG or PNG files"),
    "GIF": (encode("GIF"), "expected JPEG or PNG files"),
    "BMP": (encode("BMP"), "expected JPEG or PNG files"),
    "half a JPEG": (encode("JPEG")[:400], "Invalid JPEG data"),
    "half a PNG": (encode("PNG")[:400], "Invalid PNG data"),
    "a decompression bomb": (png_that_claims(20000, 20000), "Invalid PNG data"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_and_the_next_request_works(serve, name):
    data, message = BAD[name]
    good = encode("JPEG")
    expected = serve(good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        serve(data)
    assert message in error.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    for output, value in serve(good).items():
        np.testing.assert_array_equal(value, expected[output])


def test_a_bad_file_among_good_ones_is_named_by_its_place(serve):
    good = encode("JPEG")
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        serve(good, b"no", good, b"")
    assert "of other kinds or empty: number [1 3] of the batch" in error.value.message
    assert serve(good, good)["num_detections"].shape == [2]


def test_an_image_of_one_pixel_and_a_very_long_one_are_answered(serve):
    found = serve(encode("PNG", size=(1, 1)), encode("JPEG", size=(3000, 2)))
    assert found["detection_boxes"].shape == [2, 10, 4]
    boxes = found["detection_boxes"].numpy()
    assert np.isfinite(boxes).all()
    assert boxes[0].max() <= 1
    assert boxes[1, :, 2].max() <= 2
    assert boxes[1, :, 3].max() <= 3000


def test_an_empty_batch_is_an_error(serve):
    with pytest.raises(tf.errors.InvalidArgumentError, match="the batch is empty"):
        serve()

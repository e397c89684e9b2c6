"""What decoders forgive in a file is no fault of it; what they need is."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from data.conftest import encode, exif_segment, smooth_pixels, with_segments

from dh_keras.data.images import upright_frame
from dh_keras.data.pipeline import find_bad_image, image_dataset
from dh_keras.data.transforms import decode_image
from dh_keras.errors import DataError
from dh_keras.reports.data_doctor.file_scan import examine_files

HEIGHT, WIDTH = 40, 60
PIXELS = smooth_pixels(HEIGHT, WIDTH)
PNG, JPEG = encode(PIXELS, "PNG"), encode(PIXELS)
HEADER_END = 8 + 25  # of a PNG file: signature and IHDR


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_with(*chunks):
    return PNG[:HEADER_END] + b"".join(chunks) + PNG[HEADER_END:]


FORGIVEN = {
    "a profile with a wrong checksum": png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(900)), 7)),
    "a profile of an unknown compression": png_with(chunk(b"iCCP", b"x\0\x50" + bytes(90))),
    "a resolution with a wrong checksum": png_with(chunk(b"pHYs", bytes(9), 7)),
    "EXIF with a wrong checksum": png_with(chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0", 7), chunk(b"tEXt", b"a\0b")),
    "zeros before a segment": JPEG[:2] + b"\xff\x01\0\0" + exif_segment(1) + b"\0\0\0" + JPEG[2:],
}


@pytest.mark.parametrize("name", FORGIVEN)
def test_what_no_pixel_depends_on_may_be_broken(coco, name):
    path = coco.image(HEIGHT, WIDTH, data=FORGIVEN[name])
    coco.box(1, [10, 8, 20, 16])
    dataset = coco.load()
    assert dataset.sizes.tolist() == [[HEIGHT, WIDTH]]
    assert find_bad_image(dataset) is None
    ((_, pixels),) = image_dataset(dataset, [0])
    plain = PNG if FORGIVEN[name].startswith(PNG[:4]) else JPEG
    np.testing.assert_array_equal(pixels, decode_image(tf.constant(plain)))
    [facts] = examine_files([(str(path), (HEIGHT, WIDTH), np.zeros((0, 4)))], label="")
    assert facts.error is None
    assert facts.size == (HEIGHT, WIDTH)


REFUSED = {
    "a header with a wrong checksum": PNG[: HEADER_END - 1] + b"\0" + PNG[HEADER_END:],
    "a broken profile, and cut off": FORGIVEN["a profile with a wrong checksum"][:-200],
    "a broken profile, and no pixels": png_with(chunk(b"iCCP", b"", 7))[: HEADER_END + 12] + PNG[-12:],
    "zeros before a segment, and cut off": FORGIVEN["zeros before a segment"][:-300],
    "segments without pixels": FORGIVEN["zeros before a segment"][:200],
    "a chunk that is longer than the file": png_with(struct.pack(">I", 2**31 - 1) + b"iCCP"),
    "a signature": PNG[:8],
    "a marker": JPEG[:3],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_pixels_need_may_not(coco, name):
    path = coco.image(HEIGHT, WIDTH, data=REFUSED[name])
    assert str(path) in upright_frame(str(path), None)
    with pytest.raises(DataError, match=r"not an image|unreadable or truncated"):
        coco.load()
    assert find_bad_image(coco.load(check_images=False)) is not None


def test_a_segment_before_the_pixels_still_turns_the_image(coco):
    turned = with_segments(JPEG, exif_segment(6), b"\xff\x01\0\0")
    path = coco.image(WIDTH, HEIGHT, data=turned)
    assert upright_frame(str(path), None) == ((WIDTH, HEIGHT), 6)
    assert find_bad_image(coco.load()) is None

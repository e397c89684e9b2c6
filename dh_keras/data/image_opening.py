"""Opening image files with Pillow as the decoders see them that train and serve: these forgive what Pillow does not.

libpng warns of a wrong checksum in a chunk that no pixel depends on, such as a colour profile, and libjpeg skips bytes
between segments. TensorFlow is not imported here.
"""

import io
import struct
from importlib.util import find_spec
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

# Endings of the files that are taken for images where a folder is given; what is in one is found out when it is read.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
    *((".heic", ".heif") if find_spec("pillow_heif") else ()),
)

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
_TO_THE_END = (0xD9, 0xDA)


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image; what Pillow refuses, without what does not belong to the pixels, and decoded at once.

    Raises:
        UnidentifiedImageError: for what is no image.
        Exception: of any type, as Pillow does it for damaged files.
    """
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        data = file.read()
        if data.startswith(_PNG):
            needed = _needed_of_png(data)
        elif data.startswith(_JPEG):
            needed = _needed_of_jpeg(data)
        else:
            raise
        image = Image.open(io.BytesIO(needed))
        image.load()
        return image


def _needed_of_png(data: bytes) -> bytes:
    """The critical chunks, whose names begin with a capital."""
    place, kept = len(_PNG), [_PNG]
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        if data[place + 4 : place + 5].isupper():
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _needed_of_jpeg(data: bytes) -> bytes:
    """The segments before the pixels without the bytes between them, and all that follows."""
    place, kept = 2, [data[:2]]
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker in _TO_THE_END:
            kept.append(data[place:])
            break
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker == 0 or marker in _STANDALONE:
            place += 2
        else:
            end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
            kept.append(data[place:end])
            place = end
    return b"".join(kept)

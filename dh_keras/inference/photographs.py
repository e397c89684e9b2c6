"""Photographs from the disk and from Python, with one line for what cannot be used."""

import contextlib
import importlib
import io
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from dh_keras.data.images import read_exif_orientation
from dh_keras.data.transforms import IMAGE_MAGIC, decode_image
from dh_keras.errors import DataError, one_line, reason_of, visible
from dh_keras.inference.web import fetch, is_web_address, to_file
from dh_keras.modeling.ops.indexing import on_host
from dh_keras.paths import to_path

# Pillow knows more, and some of it starts other programs.
_FORMATS = ("WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_OTHERS = "WebP, BMP, TIFF, GIF or AVIF"
_HEIF_ADVICE = "; pip install pillow-heif, or convert it, for example with heif-convert photo.heic photo.jpg"


@dataclass(frozen=True, eq=False, kw_only=True)
class Photograph:
    """A photograph, or a frame of a video, in memory.

    Args:
        data: the bytes of a JPEG or PNG file, not decoded; or RGB pixels uint8 [H, W, 3].
        size: (height, width) of the upright image.
        name: how messages call it.
        path: of the file, or its address in the web; None for what came as bytes or pixels.
        frame: index in the video, from 0; None for a photograph.
        time: of the frame, seconds.
    """

    data: bytes | np.ndarray = field(repr=False)
    size: tuple[int, int]
    name: str = "image bytes"
    path: Path | None = None
    frame: int | None = None
    time: float | None = None

    @property
    def source(self) -> Path | bytes | np.ndarray:
        """What the pixels can be had from later: the file if there is one, so that its data need not be kept."""
        is_file = self.path is not None and self.frame is None and not is_web_address(self.path)
        return self.path if is_file else self.data


def open_photograph(image: Any) -> Photograph:
    """Read what people give as one image; see `require_image`."""
    data = require_image(image)
    path = to_file(image) if is_path(image) else None
    name = str(image) if is_path(image) else _name_of(image)
    try:
        size = data.shape[:2] if isinstance(data, np.ndarray) else _upright_size(data)
    except tf.errors.InvalidArgumentError as error:
        raise DataError(undecodable(name, error)) from error
    return Photograph(data=data, size=size, name=name, path=path)


def _name_of(image: Any) -> str:
    """The name of an open file."""
    return str(getattr(image, "name", "image bytes"))


def is_path(image: Any) -> bool:
    """Whether an image is the path of a file, also one of another file system, or an address in the web."""
    return isinstance(image, str | os.PathLike) or hasattr(image, "read_bytes")


def _upright_size(data: bytes) -> tuple[int, int]:
    """Height and width from the header, as the decoder will find them."""
    if data.startswith(IMAGE_MAGIC[1]) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
    return (width, height) if read_exif_orientation(data) >= 5 else (height, width)


def decoded(data: bytes | np.ndarray, name: str) -> np.ndarray:
    """Decode the bytes of a JPEG or PNG file to upright RGB pixels uint8 [H, W, 3]; pixels are left as they are.

    Raises:
        DataError: with the name, when it cannot be decoded.
    """
    if isinstance(data, np.ndarray):
        return data
    try:
        return decode_file(data)
    except tf.errors.InvalidArgumentError as error:
        raise DataError(undecodable(name, error)) from error


def decode_file(data: bytes) -> np.ndarray:
    """Decode the bytes of a JPEG or PNG file to upright RGB pixels uint8 [H, W, 3], as a SavedModel does.

    Raises:
        tf.errors.InvalidArgumentError: when it cannot be decoded.
    """
    # Operation by operation, TensorFlow takes 30 ms to find the orientation, many times what the pixels take.
    orientation = read_exif_orientation(data)
    with on_host():  # beside a GPU, several threads that decode have met sizes not yet copied from it
        return decode_image(tf.constant(data), tf.constant(orientation)).numpy()


def read_image_file(path: str | Path) -> bytes:
    """Read a photograph as the bytes of a JPEG or PNG file; what Pillow knows besides becomes PNG.

    Args:
        path: of the file, or its address in the web.

    Raises:
        DataError: naming the file, when it cannot be read, is empty or no image.
    """
    data = fetch(str(path)) if is_web_address(path) else _read_bytes(to_path(path))
    if not data:
        raise DataError(f"{path}: the file is empty; expected a JPEG or PNG image")
    return as_jpeg_or_png(data, str(path))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    except ValueError as error:  # a zero byte in the name
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_image(path: str | Path) -> np.ndarray:
    """Decode a file to upright RGB pixels uint8 [H, W, 3].

    Raises:
        DataError: naming the file, when it cannot be read or decoded.
    """
    return decoded(read_image_file(path), str(path))


def as_jpeg_or_png(data: bytes, name: str) -> bytes:
    """JPEG and PNG files as they are; another image that Pillow reads, or its first frame, as PNG.

    Args:
        data: a file.
        name: of it, for messages.

    Raises:
        DataError: when it is no image.
    """
    if data.startswith(IMAGE_MAGIC):
        return data
    is_heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    if is_heif:
        with contextlib.suppress(ImportError):
            importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    try:
        with Image.open(io.BytesIO(data), formats=[kind for kind in _FORMATS if kind in Image.OPEN]) as image:
            pixels = upright_rgb(image)
    except UnidentifiedImageError as error:
        if is_heif:
            raise DataError(f"{name}: is a HEIC image, which is not read here{_HEIF_ADVICE}") from error
        raise DataError(f"{name}: not a readable JPEG or PNG image, nor {_OTHERS}") from error
    except Exception as error:  # Pillow raises many types on broken files
        raise DataError(f"{name}: cannot be decoded: {one_line(error)}") from error
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of a Pillow image as `decode_image` gives those of a file: turned by its EXIF tag, alpha dropped.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: for pixels that are no colours, such as 32-bit numbers.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut what is above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}), convert them to 0..255")
    return np.array(image.convert("RGB"))


def require_image(image: Any) -> bytes | np.ndarray:
    """What people give as one image, as a JPEG or PNG file or as pixels.

    Args:
        image: a path, an address in the web (http:// or https://), a file's bytes, a file that is open for reading
            bytes, a Pillow image, or RGB pixels.

    Returns:
        Bytes; or uint8 [H, W, 3].

    Raises:
        DataError: naming the file that cannot be read.
        ValueError: for anything else, saying what is taken.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"`image` must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image
    if isinstance(image, Image.Image):
        try:
            return upright_rgb(image)
        except OSError as error:  # it was opened, and is read only now
            name = getattr(image, "filename", None) or "PIL image"
            raise DataError(f"{name}: cannot be decoded: {one_line(error)}") from error
    if is_path(image):
        return read_image_file(image)
    data = image.read() if hasattr(image, "read") else image
    if isinstance(data, bytes | bytearray | memoryview):
        name = _name_of(image)
        if not data:
            raise DataError(f"{name}: there are no bytes; expected a JPEG or PNG image")
        return as_jpeg_or_png(bytes(data), name)
    advice = "; give one image at a time, or use `predict`" if isinstance(image, list | tuple) else ""
    raise ValueError(
        "`image` must be a path, the bytes of a file, a file opened in binary mode, a PIL image or pixels uint8 "
        f"[H, W, 3], got a {type(image).__name__}{advice}"
    )


def undecodable(name: str, error: tf.errors.OpError) -> str:
    """One line for an image that TensorFlow could not decode."""
    return f"{visible(name)}: not a readable JPEG or PNG image, it may be cut off: {one_line(error.message)}"

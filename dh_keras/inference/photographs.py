"""Photographs from the disk, with one line for a file that cannot be used."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from dh_keras.data.transforms import decode_image
from dh_keras.errors import DataError, one_line, visible
from dh_keras.paths import to_path


def read_image_file(path: str | Path) -> bytes:
    """Read a file's bytes.

    Raises:
        DataError: naming the file, when it cannot be read or is empty.
    """
    try:
        data = to_path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    if not data:
        raise DataError(f"{path}: the file is empty; expected a JPEG or PNG image")
    return data


def read_image(path: str | Path) -> np.ndarray:
    """Decode a file to upright RGB pixels uint8 [H, W, 3].

    Raises:
        DataError: naming the file, when it cannot be read or decoded.
    """
    try:
        return decode_image(tf.constant(read_image_file(path))).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise DataError(undecodable(str(path), error)) from error


def undecodable(name: str, error: tf.errors.OpError) -> str:
    """One line for an image that TensorFlow could not decode."""
    return f"{visible(name)}: not a readable JPEG or PNG image, it may be cut off: {one_line(error.message)}"

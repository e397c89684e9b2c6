"""Detection in image files: several at once where they share a canvas, and a drawn picture of each."""

import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from dh_keras.data.canvases import canvas_of, canvases, resized_sizes
from dh_keras.data.images import read_exif_orientation
from dh_keras.data.transforms import IMAGE_MAGIC, decode_image
from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import replaced_file
from dh_keras.inference.detector import Detector
from dh_keras.inference.drawing import draw_detections
from dh_keras.inference.photographs import read_image_file, undecodable
from dh_keras.inference.prediction.sources import Item
from dh_keras.modeling.constants import SIZE_DIVISOR


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A file in memory, not decoded.

    Args:
        item: where it is from.
        data: its bytes.
        size: (height, width) of the upright image.
    """

    item: Item
    data: bytes
    size: tuple[int, int]


def read_images(items: Sequence[Item], threads: Executor) -> list[ImageFile | str]:
    """Read files and their sizes; what cannot be read is a line that says why."""
    return list(threads.map(_read, items))


def _read(item: Item) -> ImageFile | str:
    try:
        data = read_image_file(item.path)
        return ImageFile(item, data, _upright_size(data))
    except DataError as error:
        return str(error)
    except tf.errors.InvalidArgumentError as error:
        return undecodable(str(item.path), error)


def _upright_size(data: bytes) -> tuple[int, int]:
    """Height and width from the header, as the decoder will find them."""
    if data.startswith(IMAGE_MAGIC[1]) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
    return (width, height) if read_exif_orientation(data) >= 5 else (height, width)


def detect_images(
    detector: Detector, images: Sequence[ImageFile], batch_size: int
) -> Iterator[tuple[ImageFile, ImageDetections | str]]:
    """Detect in images of one canvas together, so that no image's padding depends on the others.

    Args:
        detector: a loaded detector.
        images: files of any sizes.
        batch_size: images that go through the network together.

    Yields:
        Each image with its detections, or with a line that says why it cannot be decoded; in any order.
    """
    by_canvas: dict[tuple[int, int], list[ImageFile]] = {}
    for image in images:
        by_canvas.setdefault(_canvas(image.size, *detector.size_limits, detector.target), []).append(image)
    for group in by_canvas.values():
        for start in range(0, len(group), batch_size):
            yield from _detect_batch(detector, group[start : start + batch_size])


def _canvas(size: tuple[int, int], min_size: int, max_size: int, target: str) -> tuple[int, int]:
    """Height and width of an image that is resized and padded, as `ServingModule` does it."""
    if target == "gpu":
        limits = {"min_size": min_size, "max_size": max_size}
        return canvases(**limits)[canvas_of(np.array([size]), **limits)[0]]
    [resized] = resized_sizes(np.array([size]), min_size=min_size, max_size=max_size)
    height, width = (-(-resized // SIZE_DIVISOR) * SIZE_DIVISOR).tolist()
    return height, width


def _detect_batch(detector: Detector, batch: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, ImageDetections | str]]:
    """Detect; where the batch holds a file that cannot be decoded, one by one."""
    try:
        yield from zip(batch, detector.detect_files([image.data for image in batch]), strict=True)
    except tf.errors.InvalidArgumentError as error:
        if len(batch) == 1:
            yield batch[0], undecodable(str(batch[0].item.path), error)
            return
        for image in batch:
            yield from _detect_batch(detector, [image])


def describe_image(path: Path, size: tuple[int, int], result: ImageDetections) -> dict[str, Any]:
    """One entry of `predictions.json`, from the file's path, its upright (height, width) and what was found."""
    height, width = size
    return {"file": str(path), "width": width, "height": height, "detections": result.as_dicts()}


def save_picture(image: ImageFile, result: ImageDetections, score: float | Sequence[float], output: Path) -> None:
    """Write the drawn picture of an image as PNG."""
    pixels = decode_image(tf.constant(image.data)).numpy()
    with replaced_file(output / f"{image.item.picture}.png") as partial:
        Image.fromarray(draw_detections(pixels, result, score_threshold=score)).save(partial)

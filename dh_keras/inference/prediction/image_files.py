"""Detection in image files: several at once where they share a canvas, and a drawn picture of each."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from dh_keras.data.canvases import canvas_of, canvases, resized_sizes
from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import replaced_file
from dh_keras.inference.drawing import draw_detections, save_picture
from dh_keras.inference.photographs import Photograph, decoded, open_photograph, undecodable
from dh_keras.inference.prediction.crops import write_crops
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.sources import Item
from dh_keras.modeling.constants import SIZE_DIVISOR

if TYPE_CHECKING:
    from dh_keras.inference.detector import Detector


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFile(Photograph):
    """A file in memory, not decoded.

    Args:
        item: where it is from.
    """

    item: Item


def read_images(items: Sequence[Item], threads: Executor) -> list[ImageFile | str]:
    """Read files and their sizes; what cannot be read is a line that says why."""
    return list(threads.map(_read, items))


def _read(item: Item) -> ImageFile | str:
    try:
        return ImageFile(item=item, **vars(open_photograph(item.path)))
    except DataError as error:
        return str(error)


def detect_images(
    detector: "Detector", images: Sequence[Photograph], batch_size: int
) -> Iterator[tuple[Photograph, ImageDetections | str]]:
    """Detect in images of one canvas together, so that no image's padding depends on the others.

    Args:
        detector: a loaded detector.
        images: of any sizes; pixels go together with those of equal size.
        batch_size: images that go through the network together.

    Yields:
        Each image with its detections, or with a line that says why it cannot be decoded; in any order.
    """
    alike: dict[tuple[bool, tuple[int, int]], list[Photograph]] = {}
    for image in images:
        is_file = isinstance(image.data, bytes)
        canvas = _canvas(image.size, *detector.size_limits, detector.target) if is_file else image.size
        alike.setdefault((is_file, canvas), []).append(image)
    for group in alike.values():
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


def _detect_batch(
    detector: "Detector", batch: Sequence[Photograph]
) -> Iterator[tuple[Photograph, ImageDetections | str]]:
    """Detect; where the batch holds a file that cannot be decoded, one by one."""
    data = [image.data for image in batch]
    if isinstance(data[0], np.ndarray):
        yield from zip(batch, detector.detect_images(np.stack(data)), strict=True)
        return
    try:
        yield from zip(batch, detector.detect_files(data), strict=True)
    except tf.errors.InvalidArgumentError as error:
        if len(batch) == 1:
            yield batch[0], undecodable(batch[0].name, error)
            return
        for image in batch:
            yield from _detect_batch(detector, [image])


def describe_image(
    path: str | Path | None,
    size: tuple[int, int],
    result: ImageDetections,
    *,
    frame: int | None = None,
    time: float | None = None,
) -> dict[str, Any]:
    """One entry of `predictions.json`.

    Args:
        path: of the file, if there is one.
        size: upright (height, width).
        result: what was found.
        frame, time: of a video; see `Photograph`.
    """
    height, width = size
    place = {} if frame is None else {"frame": frame, "time": time}
    file = None if path is None else str(path)
    return {"file": file, **place, "width": width, "height": height, "detections": result.as_dicts()}


def save_pictures(image: ImageFile, result: ImageDetections, settings: PredictionSettings, output: Path) -> None:
    """Write the drawn picture of an image as JPEG, and its crops, as far as the settings say."""
    pixels = decoded(image.data, image.name)
    if settings.crops:
        write_crops(pixels, result.above(settings.score), output, f"{image.item.picture}-")
    if settings.pictures:
        with replaced_file(output / f"{image.item.picture}.jpg") as partial:
            save_picture(draw_detections(pixels, result, score_threshold=settings.score), partial)

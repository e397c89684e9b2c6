"""Detect in what Python code has, image after image in its order, with few of them in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dh_keras.errors import DataError
from dh_keras.inference.photographs import Photograph, is_path, open_photograph
from dh_keras.inference.prediction.image_files import detect_images
from dh_keras.inference.prediction.sources import files_of, is_video
from dh_keras.inference.prediction.video import VideoReader
from dh_keras.inference.result import Result

if TYPE_CHECKING:
    from dh_keras.inference.detector import Detector

_THREADS = 4
# Batches of files that are looked at for images of one canvas.
_BATCHES_AHEAD = 4

_Opened = Photograph | DataError


def detect_stream(
    detector: "Detector",
    source: Any,
    *,
    batch_size: int,
    on_error: Callable[[DataError], Any] | None,
) -> Iterator[Result]:
    """See `Detector.predict`."""
    threads = ThreadPoolExecutor(_THREADS)
    try:
        for group in _groups(_opened(_each(source), threads), batch_size):
            photographs = [one for one in group if isinstance(one, Photograph)]
            found = {id(one): result for one, result in detect_images(detector, photographs, batch_size)}
            for one in group:
                result = found.get(id(one), one)
                error = DataError(result) if isinstance(result, str) else result
                if not isinstance(error, DataError):
                    yield Result.of(one, result, shown_above=detector.best_scores)
                elif on_error is None:
                    raise error
                else:
                    on_error(error)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _each(source: Any) -> Iterator[Any]:
    """Every image that a source stands for, frames of videos opened; what is not there as its error."""
    if is_path(source):
        try:
            for path in files_of(source):
                yield from VideoReader(path) if is_video(path) else [path]
        except DataError as error:
            yield error
    elif _is_one_image(source):
        yield source
    else:
        for one in source:
            yield from _each(one)


def _is_one_image(source: Any) -> bool:
    if hasattr(source, "__array__"):
        return not (isinstance(source, np.ndarray) and source.ndim == 4)
    is_single = isinstance(source, bytes | bytearray | memoryview | Image.Image | Mapping) or hasattr(source, "read")
    return is_single or not isinstance(source, Iterable)


def _opened(images: Iterable[Any], threads: ThreadPoolExecutor) -> Iterator[_Opened]:
    """Open images in their order; files are read ahead, and pixels, such as a camera's, taken as they come."""
    waiting: deque[Future[_Opened]] = deque()
    for image in images:
        if is_path(image):
            waiting.append(threads.submit(_open, image))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        else:
            while waiting:
                yield waiting.popleft().result()
            yield _open(image)
    while waiting:
        yield waiting.popleft().result()


def _open(image: Any) -> _Opened:
    if isinstance(image, Photograph | DataError):
        return image
    try:
        return open_photograph(image)
    except DataError as error:
        return error


def _groups(images: Iterable[_Opened], batch_size: int) -> Iterator[list[_Opened]]:
    """Images whose results are made together: several batches of files, one of pixels, which need much memory."""
    group: list[_Opened] = []
    for image in images:
        group.append(image)
        has_pixels = isinstance(image, Photograph) and isinstance(image.data, np.ndarray)
        if len(group) >= (batch_size if has_pixels or batch_size == 1 else batch_size * _BATCHES_AHEAD):
            yield group
            group = []
    if group:
        yield group

"""Detection in a video, frame by frame, and the video with what was found drawn into it (MPEG-4)."""

import contextlib
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dh_keras.errors import DataError, WriteError
from dh_keras.files import is_utf8, replaced_file
from dh_keras.inference.drawing import draw_detections
from dh_keras.inference.photographs import Photograph
from dh_keras.inference.prediction.crops import write_crops
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.image_files import describe_image
from dh_keras.inference.prediction.sources import Item
from dh_keras.paths import local_file

if TYPE_CHECKING:
    from dh_keras.inference.detector import Detector

DEFAULT_RATE = 25.0
# The count of frames in a file's header is an estimate; a video that ends earlier than this is cut off.
COMPLETE_SHARE = 0.9


def _require_utf8(path: Path) -> None:
    """Keep other names from OpenCV, whose process they end."""
    if not is_utf8(str(path)):
        raise DataError(f"{path}: OpenCV opens videos whose path is UTF-8 only; rename it")


class VideoReader:
    """Frames of a video file.

    Args:
        path: a file that OpenCV's decoder knows.

    Raises:
        DataError: naming the file, when it cannot be decoded.
    """

    def __init__(self, path: Path):
        # The decoder writes its own complaints to the terminal otherwise.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2

        self.path = path
        self._cv2 = cv2
        _require_utf8(path)
        self._file = contextlib.ExitStack()
        self._capture = cv2.VideoCapture(str(self._file.enter_context(local_file(path))))
        if not self._capture.isOpened():
            raise DataError(f"{path}: not a video that can be decoded; it may be cut off or of an unknown codec")
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = round(rate, 3) if math.isfinite(rate) and 0.1 <= rate <= 1000 else DEFAULT_RATE

    def __iter__(self) -> Iterator[Photograph]:
        """Frames, as upright pixels.

        Raises:
            DataError: behind the last frame, when there are fewer than the header says.
        """
        index, time = 0, 0.0
        while True:
            is_there, frame = self._capture.read()
            if not is_there:
                break
            stamp = self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000
            time = stamp if index == 0 or stamp > time else time + 1 / self.rate
            pixels = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
            where = {"name": str(self.path), "path": self.path, "frame": index, "time": round(time, 6)}
            yield Photograph(data=pixels, size=pixels.shape[:2], **where)
            index += 1
        self._capture.release()
        self._file.close()
        if index == 0 or index < COMPLETE_SHARE * self.count:
            raise DataError(f"{self.path}: the video is cut off: {index} of {self.count} frames can be decoded")


class VideoWriter:
    """An MPEG-4 video of pictures of one size.

    Args:
        path: the file to write, .mp4.
        rate: frames in a second.

    Raises:
        DataError: when writing the first picture, if OpenCV has no encoder.
        WriteError: when closing the file, if the disk did not take all of it.
    """

    def __init__(self, path: Path, rate: float):
        self._path = path
        self._rate = rate
        self._writer: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Append uint8 [H, W, 3], RGB; odd sides are padded by a pixel, which the codec needs."""
        import cv2

        picture = np.pad(picture, [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)], mode="edge")
        if self._writer is None:
            _require_utf8(self._path)
            size = picture.shape[1::-1]
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*"mp4v"), self._rate, size)
            if not self._writer.isOpened():
                raise DataError(f"{self._path}: OpenCV cannot write MPEG-4 here; leave the drawn video out")
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        import cv2

        if self._writer is not None and self._writer.isOpened():
            self._writer.release()
            # The encoder says nothing when the disk is full, but then the index at the end is not there.
            if not cv2.VideoCapture(str(self._path)).isOpened():
                raise WriteError(f"{self._path}: cannot be written: not all frames could be stored; free some space")


def detect_video(
    detector: "Detector", item: Item, settings: PredictionSettings, output: Path
) -> Iterator[dict[str, Any]]:
    """Detect in every frame.

    Args:
        detector: a loaded detector.
        item: the video.
        settings: of the prediction.
        output: its folder; the drawn video appears there when it is complete, and crops frame by frame.

    Yields:
        Entries of `predictions.json` with `frame` (from 0) and `time` (seconds); where the video cannot be decoded, or
        not to its end, a last one with file and error.
    """
    with contextlib.ExitStack() as stack:
        try:
            reader = VideoReader(item.path)
            frames = iter(reader)
            bar = stack.enter_context(tqdm(total=reader.count or None, unit="frame", desc=item.path.name, leave=False))
            writer = None
            if settings.pictures:
                writer = VideoWriter(stack.enter_context(replaced_file(output / f"{item.picture}.mp4")), reader.rate)
                stack.callback(writer.close)
            while batch := list(islice(frames, settings.batch_size)):
                for row in _detect_frames(detector, item, batch, writer, settings, output):
                    yield row
                    bar.update()
        except DataError as error:
            yield {"file": str(item.path), "error": str(error)}


def _detect_frames(
    detector: "Detector",
    item: Item,
    batch: list[Photograph],
    writer: VideoWriter | None,
    settings: PredictionSettings,
    output: Path,
) -> Iterator[dict[str, Any]]:
    results = detector.detect_images(np.stack([frame.data for frame in batch]))
    for frame, every_class in zip(batch, results, strict=True):
        result = every_class.of_classes(settings.classes)
        found = result.above(settings.score)
        if writer is not None:
            writer.write(draw_detections(frame.data, result, score_threshold=settings.score))
        if settings.crops:
            write_crops(frame.data, found, output, f"{item.picture}/{frame.frame:06d}-")
        yield describe_image(item.path, frame.size, found, frame=frame.frame, time=frame.time)

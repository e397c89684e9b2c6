"""Detect in many files, chunk by chunk, and write the result; a run that was killed goes on."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dh_keras.errors import visible
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector
from dh_keras.inference.drawing import describe_score
from dh_keras.inference.prediction.folder import PredictionFolder, PredictionSettings
from dh_keras.inference.prediction.image_files import (
    ImageFile,
    describe_image,
    detect_images,
    read_images,
    save_pictures,
)
from dh_keras.inference.prediction.result_files import CocoIds, Summary, read_errors, write_results
from dh_keras.inference.prediction.sources import Item, plan_chunks, plan_items
from dh_keras.inference.prediction.video import detect_video
from dh_keras.paths import to_path

# What was found is told file by file up to this many files.
SENTENCES_UP_TO = 100

_THREADS = 4


def predict_files(
    detector: Detector,
    paths: Sequence[Path],
    output: str | Path,
    settings: PredictionSettings,
    *,
    resume: bool = False,
) -> Summary:
    """Detect in images and videos and write the result, and a picture or video of each file, into a folder.

    A file that cannot be read does not stop the others. The result is written when all files are done; that of a shard
    by `merge_predictions`.

    Args:
        detector: a loaded detector.
        paths: JPEG, PNG and video files, those of other shards included.
        output: the folder; must be new or empty, or hold what was begun with the same settings if `resume`.
        settings: see `PredictionSettings`.
        resume: go on behind what is finished.

    Returns:
        What was found, and a line for every file that could not be read.

    Raises:
        DataError: when the folder cannot be used, or the annotations do not have the ids.
    """
    chunks = plan_chunks(plan_items(paths, settings.shard))
    if settings.format == "coco":
        CocoIds(detector.categories, settings.annotations).check(paths)
    begin = PredictionFolder.resume if resume else PredictionFolder.create
    folder = begin(to_path(output), settings.describe(paths, detector.categories, len(chunks)))
    if folder.is_finished:
        folder.remove_parts()
        return Summary(errors=read_errors(folder.path), finished_before=True)
    missing = folder.missing_parts()
    total = sum(map(len, chunks))
    done = total - sum(len(chunks[number]) for number in missing)
    with (
        tqdm(total=total, initial=done, unit="file", disable=total < 2) as bar,
        ThreadPoolExecutor(_THREADS, initializer=_give_way) as threads,
    ):
        work = _Work(detector, folder, settings, threads, bar, tells=total <= SENTENCES_UP_TO)
        work.run([(number, chunks[number]) for number in missing])
    if settings.shard.count > 1:
        summary = Summary()
        for row in folder.rows():
            summary.add(row)
        return summary
    summary = write_results(folder.rows(), folder.path, folder.settings)
    folder.remove_parts()
    return summary


def _give_way() -> None:
    """Let this thread run where the network leaves a core idle: its threads wait for each other many times an image."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@dataclass
class _Work:
    """The chunks that are left; files are read and pictures drawn in threads."""

    detector: Detector
    folder: PredictionFolder
    settings: PredictionSettings
    threads: ThreadPoolExecutor
    bar: tqdm
    tells: bool

    def run(self, chunks: Sequence[tuple[int, list[Item]]]) -> None:
        """Write the part of each chunk; that of images when the next one has been detected in."""
        unfinished: tuple[int, list[dict[str, Any]], list[Future]] | None = None
        for number, items in chunks:
            if items[0].is_video:
                self.folder.write_part(number, self._video_rows(items[0]))
                self.bar.update()
                continue
            latest = (number, *self._detect(items))
            self._finish(unfinished)
            unfinished = latest
        self._finish(unfinished)

    def _finish(self, chunk: tuple[int, list[dict[str, Any]], list[Future]] | None) -> None:
        if chunk is not None:
            number, rows, pictures = chunk
            for picture in pictures:
                picture.result()
            self.folder.write_part(number, rows)

    def _detect(self, items: list[Item]) -> tuple[list[dict[str, Any]], list[Future]]:
        """Rows of a chunk of images in their order, and the pictures that are being drawn."""
        rows: dict[int, dict[str, Any]] = {}
        pictures: list[Future] = []
        files: list[ImageFile] = []
        for item, file in zip(items, read_images(items, self.threads), strict=True):
            if isinstance(file, str):
                rows[item.index] = self._error_row(item, file)
            else:
                files.append(file)
        for file, result in detect_images(self.detector, files, self.settings.batch_size):
            if isinstance(result, str):
                rows[file.item.index] = self._error_row(file.item, result)
                continue
            wanted = result.of_classes(self.settings.classes)
            rows[file.item.index] = self._image_row(file, wanted)
            if self.settings.pictures or self.settings.crops:
                pictures.append(self.threads.submit(save_pictures, file, wanted, self.settings, self.folder.path))
        return [rows[item.index] for item in items], pictures

    def _error_row(self, item: Item, error: str) -> dict[str, Any]:
        self.bar.update()
        return {"index": item.index, "file": str(item.path), "error": error}

    def _image_row(self, file: ImageFile, result: ImageDetections) -> dict[str, Any]:
        self.bar.update()
        found = result.above(self.settings.score)
        if self.tells:
            tqdm.write(_sentence(file.item.path, result, self.settings.score))
        return {"index": file.item.index, **describe_image(file.item.path, file.size, found)}

    def _video_rows(self, item: Item) -> Iterator[dict[str, Any]]:
        summary = Summary()
        for row in detect_video(self.detector, item, self.settings, self.folder.path):
            summary.add(row)
            yield {"index": item.index, **row}
        if self.tells:
            tqdm.write(f"{visible(str(item.path))}: {summary}")


def _sentence(path: Path, result: ImageDetections, score: float | Sequence[float]) -> str:
    """What was found, or how close the best came."""
    found, path = result.above(score), visible(str(path))
    if len(found):
        counts = {name: found.categories.count(name) for name in sorted(set(found.categories))}
        return f"{path}: " + visible(", ".join(f"{count} {name}" for name, count in counts.items()))
    best = f"; the best is {visible(result.categories[0])} at {result.scores[0]:.2f}" if len(result) else ""
    return f"{path}: nothing above {describe_score(score)}{best}"

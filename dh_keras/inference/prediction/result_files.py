"""The files a prediction ends with: JSON, COCO results or CSV, written row by row so that memory stays flat."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dh_keras.data.formats.coco import read_image_ids
from dh_keras.errors import DataError, visible
from dh_keras.evaluation.coco_metrics import boxes_to_xywh
from dh_keras.files import replaced_text
from dh_keras.inference.prediction.folder import ERRORS_FILE, IMAGES_FILE, RESULT_FILES
from dh_keras.paths import absolute, to_path
from dh_keras.run.classes import Category

CSV_COLUMNS = (
    *("file", "frame", "time", "width", "height"),
    *("y1", "x1", "y2", "x2", "score", "category_id", "category"),
)


@dataclass
class Summary:
    """What a prediction found.

    Args:
        images: images and video frames with a row.
        empty: those among them without a detection.
        counts: detections by name of the class.
        errors: one line for each file that could not be read, or not to its end.
        finished_before: whether there was nothing left to do, so that nothing was counted.
    """

    images: int = 0
    empty: int = 0
    counts: Counter = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    finished_before: bool = False

    def add(self, row: dict[str, Any]) -> None:
        """Count a row."""
        if "error" in row:
            self.errors.append(row["error"])
            return
        self.images += 1
        self.empty += not row["detections"]
        self.counts.update(detection["category"] for detection in row["detections"])

    def __str__(self) -> str:
        """Counts in a line."""
        if self.finished_before:
            return "all files were finished before"
        found = ", ".join(f"{count} {visible(name)}" for name, count in self.counts.most_common()) or "nothing"
        return f"{found} in {self.images} image(s), {self.empty} of them without a detection"


class CocoIds:
    """Ids of images and categories in COCO results.

    Args:
        categories: of the model.
        annotations: COCO JSON whose ids are used, by file name and by name of the category; without it images are
            numbered from 1 and categories have the model's ids.

    Raises:
        DataError: when the file has not all categories of the model.
    """

    def __init__(self, categories: Sequence[Category], annotations: Path | None = None):
        self.categories = [{"id": category.id, "name": category.name} for category in categories]
        self._annotations = annotations
        self._category_ids = {category.name: category.id for category in categories}
        if annotations is not None:
            self._image_ids, own = read_image_ids(annotations)
            lacking = sorted(set(self._category_ids) - set(own))
            if lacking:
                raise DataError(
                    f"--annotations {annotations}: has no category {', '.join(lacking)}, which the model detects"
                )
            self._category_ids = own

    def category(self, name: str) -> int:
        """Id of a category."""
        return self._category_ids[name]

    def image(self, path: str | Path) -> Any:
        """Id of the image whose `file_name` is the end of a path; the longest such name wins.

        Raises:
            DataError: naming the file, when there is none.
        """
        parts = Path(absolute(path)).parts
        for start in range(len(parts)):
            name = str(Path(*parts[start:]))
            if name in self._image_ids:
                return self._image_ids[name]
        raise DataError(f"{path}: --annotations {self._annotations} has no image of this file_name")

    def check(self, paths: Iterable[Path]) -> None:
        """See that each file has an id of its own.

        Raises:
            DataError: naming the first file that has not.
        """
        if self._annotations is None:
            return
        owners: dict[Any, Path] = {}
        for path in paths:
            owner = owners.setdefault(self.image(path), path)
            if owner != path:
                raise DataError(f"{path}: is the same image of --annotations {self._annotations} as {owner}")


class _ListWriter:
    """A JSON list with an object in each line."""

    def __init__(self, file: TextIO):
        self._file = file
        self._start = "[\n"

    def write(self, entry: dict[str, Any]) -> None:
        self._file.write(self._start + json.dumps(entry, ensure_ascii=False))
        self._start = ",\n"

    def close(self) -> None:
        self._file.write("\n]\n" if self._start != "[\n" else "[]\n")


def write_results(rows: Iterable[dict[str, Any]], output: Path, settings: dict[str, Any]) -> Summary:
    """Write the result, and `errors.csv` if there are errors; the result appears last and complete.

    Args:
        rows: with file, width, height and detections, for video frames also frame and time; or with file and error.
        output: an existing folder.
        settings: content of `settings.json`; gives format, annotations and categories.

    Returns:
        What was found.
    """
    summary = Summary()
    write = {"json": _write_json, "coco": _write_coco, "csv": _write_csv}[settings["format"]]
    failed: list[tuple[str, str]] = []

    def good() -> Iterable[dict[str, Any]]:
        for row in rows:
            summary.add(row)
            if "error" in row:
                failed.append((row["file"], row["error"]))
            else:
                yield {key: value for key, value in row.items() if key != "index"}

    with replaced_text(output / RESULT_FILES[settings["format"]]) as file:
        write(good(), file, output, settings)
        if failed:
            _write_errors(failed, output / ERRORS_FILE)
    return summary


def read_errors(output: Path) -> list[str]:
    """Errors that `write_results` wrote."""
    path = output / ERRORS_FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["error"] for row in csv.DictReader(file)]


def _write_errors(failed: Sequence[tuple[str, str]], path: Path) -> None:
    with replaced_text(path) as file:
        csv.writer(file).writerows([("file", "error"), *failed])


def _write_json(rows: Iterable[dict[str, Any]], file: TextIO, output: Path, settings: dict[str, Any]) -> None:
    writer = _ListWriter(file)
    for row in rows:
        writer.write(row)
    writer.close()


def _write_csv(rows: Iterable[dict[str, Any]], file: TextIO, output: Path, settings: dict[str, Any]) -> None:
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="")
    writer.writeheader()
    for row in rows:
        image = {key: value for key, value in row.items() if key != "detections"}
        for detection in row["detections"]:
            corners = dict(zip(("y1", "x1", "y2", "x2"), detection["box"], strict=True))
            rest = {key: value for key, value in detection.items() if key != "box"}
            writer.writerow({**image, **corners, **rest})


def _write_coco(rows: Iterable[dict[str, Any]], file: TextIO, output: Path, settings: dict[str, Any]) -> None:
    categories = [Category(row["id"], row["name"]) for row in settings["categories"]]
    if settings["annotations"] is not None:
        ids = CocoIds(categories, to_path(settings["annotations"]))
        _write_coco_results(((ids.image(row["file"]), row) for row in rows), file, ids)
        return
    ids = CocoIds(categories)
    with replaced_text(output / IMAGES_FILE) as table:
        table.write(f'{{"categories": {json.dumps(ids.categories, ensure_ascii=False)},\n"images": ')
        images = _ListWriter(table)

        def numbered() -> Iterable[tuple[int, dict[str, Any]]]:
            for number, row in enumerate(rows, start=1):
                image = {key: value for key, value in row.items() if key not in ("detections", "file")}
                images.write({"id": number, "file_name": row["file"], **image})
                yield number, row

        _write_coco_results(numbered(), file, ids)
        images.close()
        table.write("}\n")


def _write_coco_results(rows: Iterable[tuple[Any, dict[str, Any]]], file: TextIO, ids: CocoIds) -> None:
    writer = _ListWriter(file)
    for image_id, row in rows:
        boxes = boxes_to_xywh(np.array([detection["box"] for detection in row["detections"]])).tolist()
        for box, detection in zip(boxes, row["detections"], strict=True):
            category_id = ids.category(detection["category"])
            writer.write({"image_id": image_id, "category_id": category_id, "bbox": box, "score": detection["score"]})
    writer.close()

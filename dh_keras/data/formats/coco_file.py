"""A COCO JSON as columns, and everything that is wrong with its rows.

The one reader of the format: training stops at the first error, the data doctor lists all findings. A row that cannot
be used becomes a finding and is left out of the columns. Letters: N images, M boxes.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dh_keras.data.formats.coco_entries import (
    IMAGE_ID_TYPES,
    ImageEntry,
    is_int,
    read_json,
    scan_categories,
    scan_images,
)
from dh_keras.data.formats.findings import Finding
from dh_keras.errors import DataError
from dh_keras.run.classes import Category


@dataclass
class CocoFile:
    """The usable rows of an annotation file.

    Args:
        name: "train" or "val", for the findings.
        annotations_path: the COCO JSON.
        images_dir: folder that its file names start from.
        tree: the JSON itself.
        categories: sorted by id; the first of two equal ids counts, and the smallest id of two equal names.
        images: N entries; two may have one id, the first of them has the boxes.
        box_rows: int64[M], index of each box in the JSON's `annotations`.
        box_images: int64[M], index into `images`.
        box_classes: int64[M], index into `categories`.
        xywh: float64[M, 4], as in the file; NaN where there are no four numbers.
        area: float64[M], pixels; NaN where there is no number from 0.
        crowd: bool[M].
        lost_rows: int64, index of each annotation of no image or no category.
        renumbered_rows: int64, index of each annotation without an id from 1 of its own.
        entry_findings: about categories and images.
    """

    name: str
    annotations_path: Path
    images_dir: Path
    tree: dict
    categories: tuple[Category, ...]
    images: list[ImageEntry]
    box_rows: np.ndarray
    box_images: np.ndarray
    box_classes: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    lost_rows: np.ndarray
    renumbered_rows: np.ndarray
    entry_findings: list[Finding]

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Names of the categories, by class index."""
        return [category.name for category in self.categories]

    def annotation_id(self, box: int) -> object:
        """Return the id of box `box`, as in the file."""
        return self.tree["annotations"][self.box_rows[box]].get("id")

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with the rows: the errors, and what training mends."""
        yield from self.errors()
        for row in self.renumbered_rows.tolist():
            own = self.tree["annotations"][row].get("id")
            message = f"annotation {row + 1} of the file has the id {own!r:.40}"
            yield Finding("duplicate_annotation_id", self.name, message, annotation_ids=(own,))

    def errors(self) -> Iterator[Finding]:
        """Yield what stops training, in the order of complaint; made one by one, as the first is often enough."""
        yield from self.entry_findings
        image_ids = {image.id for image in self.images}
        for row in (self.tree["annotations"][number] for number in self.lost_rows.tolist()):
            own, image, category = row.get("id"), row.get("image_id"), row.get("category_id")
            if type(image) in IMAGE_ID_TYPES and image in image_ids:
                message = f"annotation {own!r:.40} has category_id {category!r:.40}, which no category has"
                refusal = f"{message}; add the category or remove the annotation"
            else:
                message = f"annotation {own!r:.40} has image_id {image!r:.40}, which no image has"
                refusal = f"{message}; correct it or remove the annotation"
            yield Finding("bad_reference", self.name, message, annotation_ids=(own,), refusal=refusal)


def read_coco(annotations: str | Path, images_dir: str | Path, *, name: str = "") -> CocoFile:
    """Read an annotation file leniently.

    Args:
        annotations: COCO JSON.
        images_dir: folder of its images; the files are not looked at.
        name: "train" or "val", for the findings.

    Raises:
        DataError: when the file is no COCO JSON, or there is no such folder.
    """
    path, folder = Path(annotations), Path(images_dir)
    tree = read_json(path)
    if not folder.is_dir():
        raise DataError(f"images folder {folder}: no such folder; give the folder that file_name in {path} starts from")
    categories, class_of_id, findings = scan_categories(name, tree["categories"])
    images, image_of_id, image_findings = scan_images(name, folder, tree["images"])
    rows = tree["annotations"]
    box_images = _look_up(rows, "image_id", image_of_id, IMAGE_ID_TYPES)
    box_classes = _look_up(rows, "category_id", class_of_id, (int,))
    known = (box_images >= 0) & (box_classes >= 0)
    return CocoFile(
        name=name,
        annotations_path=path,
        images_dir=folder,
        tree=tree,
        categories=categories,
        images=images,
        box_rows=np.flatnonzero(known),
        box_images=box_images[known],
        box_classes=box_classes[known],
        xywh=_read_boxes(rows)[known],
        area=np.fromiter((_area(row.get("area")) for row in rows), np.float64, len(rows))[known],
        crowd=np.fromiter((bool(row.get("iscrowd", 0)) for row in rows), bool, len(rows))[known],
        lost_rows=np.flatnonzero(~known),
        renumbered_rows=_rows_without_own_id(rows),
        entry_findings=findings + image_findings,
    )


def _look_up(rows: list[dict], key: str, index: dict, types: Collection[type]) -> np.ndarray:
    """Return int64, the index of what each row refers to; -1 where that is nothing."""
    values = (row.get(key) for row in rows)
    return np.fromiter((index.get(value, -1) if type(value) in types else -1 for value in values), np.int64, len(rows))


def _read_boxes(rows: list[dict]) -> np.ndarray:
    """Return float64[., 4], a row of NaN for a bbox that is something else than four numbers."""
    values = [row.get("bbox") for row in rows]
    try:
        boxes = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        boxes = np.empty(0)
    if boxes.shape != (len(rows), 4):  # some are odd, so look at each
        boxes = np.array([_box(value) for value in values], np.float64).reshape(-1, 4)
    return boxes


def _box(bbox: object) -> list[float]:
    if isinstance(bbox, list) and len(bbox) == 4:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return [math.nan if value is None else float(value) for value in bbox]
    return [math.nan] * 4


def _area(value: object) -> float:
    return float(value) if type(value) in (int, float) and 0 <= value <= sys.float_info.max else math.nan


def _rows_without_own_id(rows: list[dict]) -> np.ndarray:
    seen: set[int] = set()
    bad = []
    for row, annotation in enumerate(rows):
        number = annotation.get("id")
        if not is_int(number) or number <= 0 or number in seen:
            bad.append(row)
        else:
            seen.add(number)
    return np.array(bad, np.int64)

"""A COCO JSON as columns, and everything that is wrong with its rows.

The one reader of the format: training stops at the first error, the data doctor lists all findings. A row that cannot
be used becomes a finding and is left out of the columns. Letters: N images, M boxes.
"""

import contextlib
import functools
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dh_keras.data.formats.box_formats import unlike_coco
from dh_keras.data.formats.coco_entries import (
    IMAGE_ID_TYPES,
    ImageEntry,
    is_int,
    read_json,
    scan_categories,
    scan_images,
    whole_number,
)
from dh_keras.data.formats.findings import Finding
from dh_keras.data.formats.foreign.reading import is_foreign, read_foreign
from dh_keras.data.formats.json_rows import chunks
from dh_keras.errors import DataError
from dh_keras.paths import to_path
from dh_keras.run.classes import Category

_LOST = {
    "image_id": (", which no image has", "correct it or remove the annotation"),
    "category_id": (", which no category has", "add the category or remove the annotation"),
    "iscrowd": ("", "write 0, or 1 for a crowd"),
}


@dataclass
class CocoFile:
    """The usable rows of an annotation file.

    Args:
        name: "train" or "val", for the findings.
        annotations_path: the COCO JSON.
        images_dir: folder that its file names start from.
        tree: the JSON itself, as of `read_json`.
        categories: sorted by id; the first of two equal ids counts, and the smallest id of two equal names.
        images: N entries; two may have one id, the first of them has the boxes.
        box_rows: int64[M], index of each box in the JSON's `annotations`.
        box_images: int64[M], index into `images`.
        box_classes: int64[M], index into `categories`.
        xywh: float64[M, 4], as in the file, or of the polygon; NaN where there is neither.
        from_polygon: bool[M], the box is that of the polygon, as the file has none.
        longer: bool[M], the box has more than four numbers.
        area: float64[M], pixels; NaN where there is no number above 0.
        crowd: bool[M].
        lost_rows: {index: key that is wrong} of each annotation of no image or no category, or with an odd iscrowd.
        number_rows: int64, index of each annotation whose ids are numbers as text or with a point.
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
    from_polygon: np.ndarray
    longer: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    lost_rows: dict[int, str]
    number_rows: np.ndarray
    renumbered_rows: np.ndarray
    entry_findings: list[Finding]

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Names of the categories, by class index."""
        return [category.name for category in self.categories]

    def annotation_id(self, box: int) -> object:
        """Return the id of box `box`, as in the file."""
        return self.row(box).get("id")

    def row(self, box: int) -> dict:
        """Return the annotation of box `box`, as in the file."""
        return self.tree["annotations"][self.box_rows[box]]

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with the rows: the errors, and what training mends."""
        yield from self.errors()
        for row in self.renumbered_rows.tolist():
            own = self.tree["annotations"][row].get("id")
            message = f"annotation {row + 1} of the file has the id {own!r:.40}"
            yield Finding("duplicate_annotation_id", self.name, message, annotation_ids=(own,))
        if len(self.number_rows):
            first = self.tree["annotations"][self.number_rows[0]]
            ids = {key: first.get(key) for key in ("id", "image_id", "category_id")}
            message = f"{len(self.number_rows)} annotations, the first is {ids!r:.120}"
            yield Finding("id_as_text", self.name, message, annotation_ids=(first.get("id"),))

    def errors(self) -> Iterator[Finding]:
        """Yield what stops training, in the order of complaint; made one by one, as the first is often enough."""
        yield from self.entry_findings
        for number, key in self.lost_rows.items():
            row = self.tree["annotations"][number]
            message = f"annotation {row.get('id')!r:.40} has {key} {row.get(key)!r:.40}{_LOST[key][0]}"
            refusal = f"{message}; {_LOST[key][1]}"
            yield Finding("bad_reference", self.name, message, annotation_ids=(row.get("id"),), refusal=refusal)
        yield from self.unlike_coco()

    def unlike_coco(self) -> list[Finding]:
        """Return what tells boxes of another format; see `unlike_coco` of the module box_formats."""
        longer = [self.row(box)["bbox"] for box in np.flatnonzero(self.longer)]
        return unlike_coco(self.name, longer, self.xywh)


def read_coco(
    annotations: str | Path, images_dir: str | Path, *, name: str = "", known: Sequence[str] = ()
) -> CocoFile:
    """Read an annotation file leniently.

    Args:
        annotations: COCO JSON, or what another tool wrote (`foreign`).
        images_dir: folder of its images; the files are not looked at.
        name: "train" or "val", for the findings.
        known: names of classes that need no boxes, where another tool's annotations do not list theirs.

    Raises:
        DataError: when the file is no COCO JSON and no other that is known, or there is no such folder.
    """
    path, folder = to_path(annotations), to_path(images_dir)
    tree = read_foreign(path, folder, known=known) if is_foreign(path) else read_json(path)
    if not folder.is_dir():
        raise DataError(f"images folder {folder}: no such folder; give the folder that file_name in {path} starts from")
    categories, class_of_id, findings = scan_categories(name, tree["categories"])
    images, image_of_id, image_findings = scan_images(name, folder, tree["images"])
    columns = _read_columns(tree["annotations"], image_of_id, class_of_id)
    known = (columns["image"] >= 0) & (columns["class"] >= 0) & (columns["crowd"] >= 0)
    return CocoFile(
        name=name,
        annotations_path=path,
        images_dir=folder,
        tree=tree,
        categories=categories,
        images=images,
        box_rows=np.flatnonzero(known),
        box_images=columns["image"][known],
        box_classes=columns["class"][known],
        xywh=columns["xywh"][known],
        from_polygon=columns["from_polygon"][known],
        longer=columns["longer"][known],
        area=columns["area"][known],
        crowd=columns["crowd"][known] == 1,
        lost_rows={
            row: "image_id" if columns["image"][row] < 0 else "category_id" if columns["class"][row] < 0 else "iscrowd"
            for row in np.flatnonzero(~known).tolist()
        },
        number_rows=np.flatnonzero(known & columns["by_number"]),
        renumbered_rows=np.flatnonzero(~columns["own_id"]),
        entry_findings=findings + image_findings,
    )


def _read_columns(rows: Sequence[dict], image_of_id: dict, class_of_id: dict) -> dict[str, np.ndarray]:
    """Return what each annotation says, one array per question; few annotations are objects at a time."""
    image_by_number, class_by_number, seen = _by_number(image_of_id), _by_number(class_of_id), set()
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in chunks(rows) if rows else [[]]:
        image, image_loose = _look_up(chunk, "image_id", image_of_id, image_by_number, IMAGE_ID_TYPES)
        category, class_loose = _look_up(chunk, "category_id", class_of_id, class_by_number, (int,))
        bboxes = [row.get("bbox") for row in chunk]
        xywh, from_polygon = _read_boxes(chunk, bboxes)
        columns = {
            "image": image,
            "class": category,
            "by_number": image_loose | class_loose,
            "crowd": np.fromiter((_crowd(row.get("iscrowd")) for row in chunk), np.int64, len(chunk)),
            "xywh": xywh,
            "from_polygon": from_polygon,
            "longer": np.array([isinstance(bbox, list) and len(bbox) > 4 for bbox in bboxes], bool),
            "area": np.fromiter((_area(row.get("area")) for row in chunk), np.float64, len(chunk)),
            "own_id": np.fromiter((_has_own_id(row.get("id"), seen) for row in chunk), bool, len(chunk)),
        }
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(part) for name, part in parts.items()}


def _by_number(index: dict) -> dict[int, int]:
    """Return the same by the numbers that the keys are; -1 where nobody knows which is meant, such as by 7 and "07"."""
    by_number: dict[int, int] = {}
    for value, position in index.items():
        number = whole_number(value)
        if number is not None and by_number.setdefault(number, position) != position:
            by_number[number] = -1
    return by_number


def _look_up(
    rows: list[dict], key: str, index: dict, by_number: dict[int, int], types: Collection[type]
) -> tuple[np.ndarray, np.ndarray]:
    """Return int64, the index of what each row refers to, -1 where that is nothing; and bool, by its number only."""
    found, loose = np.full(len(rows), -1, np.int64), np.zeros(len(rows), bool)
    for row, annotation in enumerate(rows):
        value = annotation.get(key)
        exact = index.get(value, -1) if type(value) in types else -1
        found[row] = exact if exact >= 0 else by_number.get(whole_number(value), -1)
        loose[row] = found[row] >= 0 and (exact < 0 or type(value) is float)
    return found, loose


def _crowd(value: object) -> int:
    """Return 1 for a crowd, 0 for none, -1 for what says neither."""
    number = int(value or 0) if isinstance(value, bool | None) else whole_number(value)
    return number if number in (0, 1) else -1


def _read_boxes(rows: list[dict], values: list[object]) -> tuple[np.ndarray, np.ndarray]:
    """Return float64[., 4] and bool[.], taken from the polygon; NaN where there are neither four numbers nor one."""
    try:
        boxes = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        boxes = np.empty(0)
    if boxes.shape != (len(rows), 4):  # some are odd, so look at each
        boxes = np.array([_box(value) for value in values], np.float64).reshape(-1, 4)
    from_polygon = np.zeros(len(rows), bool)
    for row in np.flatnonzero(np.isnan(boxes).any(axis=1) | (boxes == 0).all(axis=1)).tolist():
        outline = _polygon_box(rows[row].get("segmentation"))
        if outline is not None:
            boxes[row], from_polygon[row] = outline, True
    return boxes, from_polygon


def _box(bbox: object) -> list[float]:
    if isinstance(bbox, list) and len(bbox) == 4:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return [math.nan if value is None else float(value) for value in bbox]
    return [math.nan] * 4


def _polygon_box(polygons: object) -> list[float] | None:
    """Return x, y, width and height around polygons [[x1, y1, x2, y2, ...], ...]; None for anything else."""
    try:
        numbers = np.array([number for polygon in polygons for number in polygon], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if not isinstance(polygons, list) or len(numbers) < 6 or len(numbers) % 2 or not np.isfinite(numbers).all():
        return None
    points = numbers.reshape(-1, 2)
    return [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]


def _area(value: object) -> float:
    # A box that has sides has an area: 0 is what tools write that do not know it.
    return float(value) if type(value) in (int, float) and 0 < value <= sys.float_info.max else math.nan


def _has_own_id(number: object, seen: set[int]) -> bool:
    """Whether it is an id from 1 that no row before has; adds it to what was seen."""
    if not is_int(number) or number <= 0 or number in seen:
        return False
    seen.add(number)
    return True

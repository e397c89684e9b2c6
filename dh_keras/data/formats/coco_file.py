"""A COCO JSON as columns, and everything that is wrong with its rows.

The one reader of the format: training stops at the first error, the data doctor lists all findings. A row that cannot
be used becomes a finding and is left out of the columns. Letters: N images, M boxes.
"""

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dh_keras.data.formats.findings import Finding
from dh_keras.errors import DataError, one_line
from dh_keras.run.classes import Category

_LISTS = ("images", "annotations", "categories")
# What a JSON can have as an id; True and False are numbers to Python, so types are compared, not asked for.
_IMAGE_ID_TYPES = (int, float, str, bool)
_CATEGORY_ID_TYPES = (int,)


class ImageEntry(NamedTuple):
    """An image of the file.

    Args:
        row: its index in the JSON's `images`.
        id: as in the JSON.
        path: absolute path of its file, which need not exist.
        declared: (height, width) of the JSON in pixels, or None when it has none.
        file_name: as in the JSON.
    """

    row: int
    id: int | float | str
    path: str
    declared: tuple[int, int] | None
    file_name: str


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
        """Yield what is wrong with the rows, in the order in which training complains; made one by one, as needed."""
        yield from self.entry_findings
        image_ids = {image.id for image in self.images}
        for row in self.lost_rows.tolist():
            yield _lost_finding(self.name, self.tree["annotations"][row], image_ids)
        for row in self.renumbered_rows.tolist():
            own = self.tree["annotations"][row].get("id")
            message = f"annotation {row + 1} of the file has the id {own!r:.40}"
            yield Finding("duplicate_annotation_id", self.name, message, annotation_ids=(own,))


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
    categories, class_of_id, findings = _read_categories(name, tree["categories"])
    images, image_of_id, image_findings = _read_images(name, folder, tree["images"])
    rows = tree["annotations"]
    box_images = _look_up(rows, "image_id", image_of_id, _IMAGE_ID_TYPES)
    box_classes = _look_up(rows, "category_id", class_of_id, _CATEGORY_ID_TYPES)
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


def refuse_errors(path: Path, findings: Iterable[Finding]) -> None:
    """Raise the first finding that is an error.

    Args:
        path: the annotation file, for the message.
        findings: about it, in the order of complaint.

    Raises:
        DataError: one line naming the file, what was expected and what to do.
    """
    for finding in findings:
        if finding.refusal is not None:
            raise DataError(f"annotations {path}: {finding.refusal}")


def read_json(path: Path) -> dict[str, list]:
    """Read a COCO JSON and check that it has its three lists.

    Args:
        path: the file.

    Returns:
        The whole tree; images and categories are not empty.

    Raises:
        DataError: naming the file and what it lacks.
    """
    if not path.is_file():
        raise DataError(f"annotations {path}: no such file; expected a COCO JSON")
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"annotations {path}: not valid JSON ({one_line(error)}); write or download it again"
        ) from error
    if not isinstance(tree, dict):
        raise DataError(f"annotations {path}: expected a JSON object, got {type(tree).__name__}; is this a COCO file?")
    for key in _LISTS:
        value = tree.get(key)
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            found = "it is missing" if key not in tree else "it is something else"
            raise DataError(
                f"annotations {path}: expected key {key!r} with a list of objects, but {found}; see the COCO format"
            )
    for key in ("images", "categories"):
        if not tree[key]:
            raise DataError(f"annotations {path}: {key!r} is empty; expected at least one, is this the right file?")
    return tree


def parse_categories(path: Path, rows: list[dict]) -> tuple[Category, ...]:
    """Check the categories of a file, and sort them by id.

    Args:
        path: the file, for messages.
        rows: objects with an integer `id` and a `name`, each its own.

    Raises:
        DataError: naming the file and the category.
    """
    categories, _, findings = _read_categories("", rows)
    refuse_errors(path, findings)
    return categories


def parse_image_ids(path: Path, rows: list[dict]) -> list[int | float | str]:
    """Return the ids of the images of a file, as in it.

    Args:
        path: the file, for messages.
        rows: objects with an `id`, each its own.

    Raises:
        DataError: naming the file and the image.
    """
    refuse_errors(path, _image_id_findings("", rows))
    return [row["id"] for row in rows]


def is_int(value: object) -> bool:
    """Tell a whole number from True and False, which Python counts as such."""
    return isinstance(value, int) and not isinstance(value, bool)


def _read_categories(split: str, rows: list[dict]) -> tuple[tuple[Category, ...], dict[int, int], list[Finding]]:
    """Return the categories sorted by id, {category id: class index}, and what is wrong."""
    findings: list[Finding] = []
    name_of_id: dict[int, str] = {}
    for row in rows:
        number, name = row.get("id"), row.get("name")
        if not is_int(number) or not isinstance(name, str):
            message = f"category {row!r:.80}: expected an integer id and a name"
            findings.append(Finding("bad_category", split, message, refusal=f"{message}; mend the file"))
        elif number in name_of_id:
            both = f"categories {name_of_id[number]!r} and {name!r} have the id {number}"
            refusal = f"two categories have the id {number}; give each its own"
            findings.append(Finding("duplicate_category", split, both, refusal=refusal))
        else:
            if name in name_of_id.values():
                message = f"two categories have the name {name!r}"
                findings.append(Finding("duplicate_category", split, message, refusal=f"{message}; give each its own"))
            name_of_id[number] = name
    first_ids: dict[str, int] = {}
    for number in sorted(name_of_id):
        first_ids.setdefault(name_of_id[number], number)
    index = {name: position for position, name in enumerate(first_ids)}
    categories = tuple(Category(number, name) for name, number in first_ids.items())
    return categories, {number: index[name] for number, name in name_of_id.items()}, findings


def _image_id_findings(split: str, rows: list[dict]) -> list[Finding]:
    """Find images without an id, and those with one that an image before has."""
    findings: list[Finding] = []
    first: dict[object, dict] = {}
    for row in rows:
        number = row.get("id")
        if not isinstance(number, _IMAGE_ID_TYPES):
            message = f"{row!r:.80}: expected an id"
            refusal = f"image {message}; number the images"
            findings.append(Finding("bad_image_entry", split, message, refusal=refusal))
        elif first.setdefault(number, row) is not row:
            names = f"{first[number].get('file_name')} and {row.get('file_name')}"
            message = f"{names} have the id {number!r}; its boxes are taken as the first one's"
            refusal = f"two images have the id {number!r}; give each image its own id"
            findings.append(Finding("duplicate_image_id", split, message, refusal=refusal))
    return findings


def _read_images(
    split: str, folder: Path, rows: list[dict]
) -> tuple[list[ImageEntry], dict[object, int], list[Finding]]:
    """Return the entries that name a file, {image id: index of the first of it}, and what is wrong."""
    findings = _image_id_findings(split, rows)
    images: list[ImageEntry] = []
    index_of_id: dict[object, int] = {}
    root = os.path.abspath(folder)
    for number, row in enumerate(rows):
        if not isinstance(row.get("id"), _IMAGE_ID_TYPES):
            continue
        try:
            entry = ImageEntry(number, row["id"], _resolve(root, folder, row), _declared_size(row), row["file_name"])
        except ValueError as error:
            findings.append(Finding("bad_image_entry", split, f"{row!r:.80}: {error}", refusal=str(error)))
            continue
        index_of_id.setdefault(entry.id, len(images))
        images.append(entry)
    return images, index_of_id, findings


def _resolve(root: str, folder: Path, row: dict) -> str:
    """Return the absolute path of an image, without following links; refuse one that lies elsewhere."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"image {row['id']!r}: expected a file_name, got {name!r}; add it")
    full = os.path.normpath(os.path.join(root, name))
    if os.path.isabs(name) or not full.startswith(root.rstrip(os.sep) + os.sep):
        raise ValueError(f"file_name {name!r} leaves the image folder {folder}; expected a name relative to it")
    return full


def _declared_size(row: dict) -> tuple[int, int] | None:
    """Return (height, width); None when there are none, or the zeros that some converters write."""
    size = (row.get("height"), row.get("width"))
    if not all(size):
        return None
    for value in size:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value % 1 != 0:
            raise ValueError(
                f"image {row['file_name']!r}: expected whole numbers as height and width, got {size}; correct or "
                "remove them"
            )
    return int(size[0]), int(size[1])


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


def _lost_finding(split: str, row: dict, image_ids: Collection) -> Finding:
    """Return the finding about an annotation of no image or no category."""
    own, image = row.get("id"), row.get("image_id")
    if type(image) not in _IMAGE_ID_TYPES or image not in image_ids:
        what, advice = "image", "correct it or remove the annotation"
    else:
        what, advice = "category", "add the category or remove the annotation"
    key = f"{what}_id"
    message = f"annotation {own!r:.40} has {key} {row.get(key)!r:.40}, which no {what} has"
    refusal = f"{message}; {advice}"
    return Finding("bad_reference", split, message, annotation_ids=(own,), refusal=refusal)

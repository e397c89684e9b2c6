"""COCO annotations and their image folder as flat NumPy arrays, checked once, with errors that name the file.

This is one of the three places where a box order is converted: COCO's [x, y, width, height] comes in, the package's
[y1, x1, y2, x2] goes on. TensorFlow is not imported here, so data can be checked anywhere.

Letters: N images, M boxes that can be targets, K classes.
"""

import json
import math
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dh_keras.data.images import check_images_on_disk, one_line
from dh_keras.errors import DataError

_NO_BOX = [math.nan] * 4
# Clipping that moves no side by more than this many pixels is rounding in the file, not a box outside the image.
_CLIP_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Category:
    """A class of objects: the id of the annotation file and the name."""

    id: int
    name: str


@dataclass
class CocoDataset:
    """An annotation file and its images.

    Args:
        annotations_path: the COCO JSON.
        images_dir: the folder its file names are relative to.
        categories: class index k is categories[k]; sorted by id, or in the order that was given to `load_coco`.
        category_ids: int64[K], class index -> category id in this file (ids of `categories` may be another file's).
        image_ids: int64[N], as in the file; 1..N when the file's ids are not integers.
        paths: absolute path of every image.
        sizes: int32[N, 2], (height, width) of the upright image, the frame of the boxes.
        orientations: int32[N], EXIF orientation 1..8 to apply to the decoded pixels to make the image upright.
        box_offsets: int64[N + 1], the boxes of image i are rows box_offsets[i]:box_offsets[i + 1].
        boxes: float32[M, 4], y1 x1 y2 x2 in pixels of the upright image, clipped to it; no crowd, none degenerate.
        classes: int32[M], class index of every box.
        ground_truth: COCO dict for pycocotools: the file's boxes and crowds without degenerate ones, not clipped,
            with annotation ids 1..n, area and iscrowd always present, and the file's own category ids.
        counts: what was found and mended, by name.
    """

    annotations_path: Path
    images_dir: Path
    categories: tuple[Category, ...]
    category_ids: np.ndarray
    image_ids: np.ndarray
    paths: list[str]
    sizes: np.ndarray
    orientations: np.ndarray
    box_offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    ground_truth: dict = field(repr=False)
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class, by class index."""
        return tuple(category.name for category in self.categories)

    def boxes_of(self, index: int) -> np.ndarray:
        """Return float32[n, 4], the y1 x1 y2 x2 boxes of image `index` in its own pixels."""
        return self.boxes[self.box_offsets[index] : self.box_offsets[index + 1]]

    def classes_of(self, index: int) -> np.ndarray:
        """Return int32[n], the class indices of the boxes of image `index`."""
        return self.classes[self.box_offsets[index] : self.box_offsets[index + 1]]

    def summary(self) -> str:
        """Return a table of the categories with their boxes, and a line with the counts that are not zero."""
        per_class = np.bincount(self.classes, minlength=self.num_classes)
        rows = [("id", "category", "boxes")]
        rows += [
            (str(number), name, str(boxes))
            for number, name, boxes in zip(self.category_ids, self.class_names, per_class, strict=True)
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
        shown = {name: count for name, count in self.counts.items() if count or name in ("images", "boxes")}
        lines.append(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shown.items()))
        return "\n".join(lines)


def boxes_from_xywh(xywh: np.ndarray) -> np.ndarray:
    """Convert COCO boxes to the package's order.

    Args:
        xywh: float[..., 4], left, top, width and height in pixels.

    Returns:
        float[..., 4], y1 x1 y2 x2 in the same pixels, same dtype.

    Example:
        >>> boxes_from_xywh(np.array([[10.0, 20.0, 5.0, 7.0]])).tolist()
        [[20.0, 10.0, 27.0, 15.0]]
    """
    x, y, width, height = np.moveaxis(np.asarray(xywh), -1, 0)
    return np.stack([y, x, y + height, x + width], axis=-1)


def load_coco(
    annotations: str | Path,
    images: str | Path,
    *,
    categories: Sequence[Category] | None = None,
    check_images: bool = True,
) -> CocoDataset:
    """Read a COCO annotation file, check it and its images, and flatten it.

    Args:
        annotations: COCO JSON with `images`, `annotations` and `categories`.
        images: folder that its file names are relative to.
        categories: classes of the model or of the training split; the file must have the same names, its ids may
            differ. None takes the file's categories, sorted by id.
        check_images: read the header and the end of every image file, compare sizes and decide how EXIF orientation
            applies. False trusts the sizes of the JSON and takes every image as upright.

    Returns:
        A `CocoDataset`; boxes that cannot be used are dropped and counted, never an error.

    Raises:
        DataError: one line naming the file, what was expected and what to do.
    """
    path, folder = Path(annotations), Path(images)
    tree = _read_json(path)
    if not folder.is_dir():
        raise DataError(f"images folder {folder}: no such folder; give the folder that file_name in {path} starts from")
    own = _parse_categories(path, tree["categories"])
    categories, category_ids = _match_categories(path, own, categories)
    raw_ids, image_ids = _parse_image_ids(path, tree["images"])
    paths = _resolve_paths(path, folder, tree["images"])
    declared = [_declared_size(path, image) for image in tree["images"]]
    if check_images:
        sizes, orientations = check_images_on_disk(path, paths, declared)
    else:
        sizes, orientations = _trust_sizes(path, paths, declared), np.ones(len(paths), np.int32)
    columns = _parse_annotations(path, tree["annotations"], raw_ids, {category.id for category in own})
    flat = _flatten(columns, sizes, category_ids)
    return CocoDataset(
        annotations_path=path,
        images_dir=folder,
        categories=categories,
        category_ids=category_ids,
        image_ids=image_ids,
        paths=paths,
        sizes=sizes,
        orientations=orientations,
        box_offsets=flat["offsets"],
        boxes=flat["boxes"],
        classes=flat["classes"],
        ground_truth=_ground_truth(tree, columns, flat["usable"], image_ids, sizes),
        counts=_count(columns, flat, declared, orientations, raw_ids, image_ids),
    )


def find_bad_image(dataset: CocoDataset, indices: Iterable[int] | None = None) -> str | None:
    """Decode images one by one, exactly as training does, until one fails.

    A failure inside tf.data does not say which file it was; this does.

    Args:
        dataset: images to try.
        indices: which of them, in this order; None tries all.

    Returns:
        One line naming the first file that fails and why, or None.
    """
    import tensorflow as tf

    from dh_keras.data.transforms import decode_image

    for index in range(len(dataset)) if indices is None else indices:
        path, size = dataset.paths[index], tuple(dataset.sizes[index].tolist())
        try:
            image = decode_image(tf.io.read_file(path), tf.constant(dataset.orientations[index], tf.int32))
        except tf.errors.OpError as error:
            return f"image {path}: cannot be decoded ({one_line(error.message)}); replace it or take it out of the set"
        if tuple(image.shape[:2]) != size:
            got = tuple(image.shape[:2])
            return f"image {path}: expected (height, width) {size} as annotated, got {got}; mend one of the two"
    return None


# Reading the JSON.


def _read_json(path: Path) -> dict[str, list]:
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
    for key in ("images", "annotations", "categories"):
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


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _first_duplicate(values: Iterable[Hashable]) -> Hashable | None:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _parse_categories(path: Path, rows: list[dict]) -> tuple[Category, ...]:
    for row in rows:
        if not _is_int(row.get("id")) or not isinstance(row.get("name"), str):
            raise DataError(
                f"annotations {path}: category {row!r:.80}: expected an integer id and a name; mend the file"
            )
    for key in ("id", "name"):
        duplicate = _first_duplicate(row[key] for row in rows)
        if duplicate is not None:
            raise DataError(f"annotations {path}: two categories have the {key} {duplicate!r}; give each its own")
    return tuple(sorted((Category(row["id"], row["name"]) for row in rows), key=lambda category: category.id))


def _match_categories(
    path: Path, own: tuple[Category, ...], wanted: Sequence[Category] | None
) -> tuple[tuple[Category, ...], np.ndarray]:
    """Return the classes and, for each, the id it has in this file."""
    wanted = own if wanted is None else tuple(wanted)
    own_ids = {category.name: category.id for category in own}
    names = {category.name for category in wanted}
    lacking = [category.name for category in wanted if category.name not in own_ids]
    surplus = [category.name for category in own if category.name not in names]
    if lacking or surplus:
        raise DataError(
            f"annotations {path}: categories differ from the expected ones: missing {lacking}, not expected {surplus}; "
            "use files with the same category names"
        )
    return wanted, np.array([own_ids[category.name] for category in wanted], np.int64)


def _parse_image_ids(path: Path, rows: list[dict]) -> tuple[dict[Hashable, int], np.ndarray]:
    """Return {id in the file: image index} and the int64 ids to go on with."""
    raw = [row.get("id") for row in rows]
    for row, number in zip(rows, raw, strict=True):
        if not isinstance(number, int | float | str):
            raise DataError(f"annotations {path}: image {row!r:.80}: expected an id; number the images")
    duplicate = _first_duplicate(raw)
    if duplicate is not None:
        raise DataError(f"annotations {path}: two images have the id {duplicate!r}; give each image its own id")
    usable = all(_is_int(number) and abs(number) < 2**63 for number in raw)
    return {number: i for i, number in enumerate(raw)}, np.array(raw if usable else range(1, len(raw) + 1), np.int64)


def _resolve_paths(path: Path, folder: Path, rows: list[dict]) -> list[str]:
    """Join folder and file names, without following links, and refuse a name that leads out of the folder."""
    root = os.path.abspath(folder)
    paths = []
    for row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"annotations {path}: image {row['id']!r}: expected a file_name, got {name!r}; add it")
        full = os.path.normpath(os.path.join(root, name))
        if os.path.isabs(name) or not full.startswith(root.rstrip(os.sep) + os.sep):
            raise DataError(
                f"annotations {path}: file_name {name!r} leaves the image folder {folder}; "
                "expected a name relative to it"
            )
        paths.append(full)
    return paths


def _declared_size(path: Path, row: dict) -> tuple[int, int] | None:
    """Return the (height, width) of the JSON; None when it has none (or the zeros that some converters write)."""
    size = (row.get("height"), row.get("width"))
    if not all(size):
        return None
    for value in size:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value % 1 != 0:
            raise DataError(
                f"annotations {path}: image {row['file_name']!r}: expected whole numbers as height and width, "
                f"got {size}; correct or remove them"
            )
    return int(size[0]), int(size[1])


def _parse_annotations(path: Path, rows: list[dict], image_index: dict, known_categories: set[int]) -> dict[str, Any]:
    """Return the annotations as columns; a bbox that is not four numbers is NaN, and so is a missing area."""
    images, categories, crowd, boxes, areas = [], [], [], [], []
    seen: set[Hashable] = set()
    bad_ids = 0
    for row in rows:
        number, image, category = row.get("id"), row.get("image_id"), row.get("category_id")
        if not isinstance(image, Hashable) or image not in image_index:
            raise DataError(
                f"annotations {path}: annotation {number!r} has image_id {image!r}, which no image has; "
                "correct it or remove the annotation"
            )
        if not _is_int(category) or category not in known_categories:
            raise DataError(
                f"annotations {path}: annotation {number!r} has category_id {category!r}, which no category has; "
                "add the category or remove the annotation"
            )
        if not _is_int(number) or number <= 0 or number in seen:
            bad_ids += 1
        else:
            seen.add(number)
        images.append(image_index[image])
        categories.append(category)
        crowd.append(bool(row.get("iscrowd", 0)))
        boxes.append(_numbers(row.get("bbox")))
        areas.append(_area(row.get("area")))
    return {
        "image": np.array(images, np.int64),
        "category": np.array(categories, np.int64),
        "iscrowd": np.array(crowd, bool),
        "xywh": np.array(boxes, np.float64).reshape(-1, 4),
        "area": np.array(areas, np.float64),
        "bad_ids": bad_ids,
    }


def _numbers(bbox: object) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return _NO_BOX
    try:
        return [float(value) for value in bbox]
    except (TypeError, ValueError, OverflowError):
        return _NO_BOX


def _area(value: object) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if usable else math.nan


def _flatten(columns: dict[str, Any], sizes: np.ndarray, category_ids: np.ndarray) -> dict[str, Any]:
    """Clip, drop what cannot be used, and sort the targets by image (order within an image as in the file)."""
    xywh, image = columns["xywh"], columns["image"]
    usable = np.isfinite(xywh).all(axis=1) & (xywh[:, 2:] > 0).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        whole = boxes_from_xywh(xywh)
        limit = np.tile(sizes[image].astype(np.float64), 2)
        boxes = np.clip(whole, 0, limit).astype(np.float32)
        usable &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        moved = (np.abs(boxes - whole) > _CLIP_TOLERANCE).any(axis=1)
    target = usable & ~columns["iscrowd"]
    rows = np.flatnonzero(target)[np.argsort(image[target], kind="stable")]
    by_id = np.argsort(category_ids)
    classes = by_id[np.searchsorted(category_ids[by_id], columns["category"][rows])]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(image[rows], minlength=len(sizes)))])
    return {
        "usable": usable,
        "clipped": int(np.sum(moved & target)),
        "boxes": boxes[rows],
        "classes": classes.astype(np.int32),
        "offsets": offsets.astype(np.int64),
    }


def _count(
    columns: dict[str, Any],
    flat: dict[str, Any],
    declared: list[tuple[int, int] | None],
    orientations: np.ndarray,
    raw_ids: dict[Hashable, int],
    image_ids: np.ndarray,
) -> dict[str, int]:
    usable = flat["usable"]
    return {
        "images": len(declared),
        "boxes": len(flat["boxes"]),
        "crowd": int(np.sum(columns["iscrowd"][usable])),
        "degenerate": int(np.sum(~usable)),
        "clipped": flat["clipped"],
        "empty_images": int(np.sum(np.diff(flat["offsets"]) == 0)),
        "exif_rotated": int(np.sum(orientations != 1)),
        "filled_sizes": sum(size is None for size in declared),
        "filled_areas": int(np.sum(np.isnan(columns["area"][usable]))),
        "renumbered_annotation_ids": columns["bad_ids"],
        "renumbered_image_ids": 0 if raw_ids.keys() == set(image_ids.tolist()) else len(declared),
    }


def _ground_truth(
    tree: dict, columns: dict[str, Any], usable: np.ndarray, image_ids: np.ndarray, sizes: np.ndarray
) -> dict:
    """Build what pycocotools reads without a trap: it drops id 0, merges equal ids and needs area and iscrowd."""
    xywh = columns["xywh"][usable]
    areas = columns["area"][usable]
    areas = np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)
    images = image_ids[columns["image"][usable]]
    values = [images, columns["category"][usable], xywh, areas, columns["iscrowd"][usable].astype(int)]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    numbers = range(1, len(xywh) + 1)
    return {
        "images": [
            {"id": number, "file_name": row["file_name"], "height": height, "width": width}
            for number, row, (height, width) in zip(image_ids.tolist(), tree["images"], sizes.tolist(), strict=True)
        ],
        "annotations": [
            dict(zip(keys, row, strict=True))
            for row in zip(numbers, *(value.tolist() for value in values), strict=True)
        ],
        "categories": [dict(row) for row in tree["categories"]],
    }


def _trust_sizes(path: Path, paths: list[str], declared: list[tuple[int, int] | None]) -> np.ndarray:
    if None in declared:
        name = paths[declared.index(None)]
        raise DataError(f"annotations {path}: no height and width for {name}; add them, or load with check_images=True")
    return np.array(declared, np.int32)

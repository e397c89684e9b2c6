"""COCO annotations and their image folder, read and checked once, with errors that name the file.

TensorFlow is not imported here, so data can be checked anywhere.
"""

import math
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dh_keras.data.dataset import CocoDataset, build_dataset
from dh_keras.data.formats.coco_rows import (
    box_numbers,
    declared_size,
    first_duplicate,
    is_int,
    parse_categories,
    read_json,
    resolve_paths,
)
from dh_keras.data.images import check_images_on_disk
from dh_keras.errors import DataError, one_line
from dh_keras.run.classes import Category


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
    tree = read_json(path)
    if not folder.is_dir():
        raise DataError(f"images folder {folder}: no such folder; give the folder that file_name in {path} starts from")
    own = parse_categories(path, tree["categories"])
    categories, category_ids = _match_categories(path, own, categories)
    raw_ids, image_ids = _parse_image_ids(path, tree["images"])
    paths = resolve_paths(path, folder, tree["images"])
    declared = [declared_size(path, image) for image in tree["images"]]
    if check_images:
        sizes, orientations = check_images_on_disk(path, paths, declared)
    else:
        sizes, orientations = _trust_sizes(path, paths, declared), np.ones(len(paths), np.int32)
    columns = _parse_annotations(path, tree["annotations"], raw_ids, {category.id for category in own})
    return build_dataset(
        CocoDataset,
        annotations_path=path,
        images_dir=folder,
        categories=categories,
        category_ids=category_ids,
        image_ids=image_ids,
        paths=paths,
        sizes=sizes,
        orientations=orientations,
        columns=columns,
        category_rows=[dict(row) for row in tree["categories"]],
        file_names=[row["file_name"] for row in tree["images"]],
        counts={
            "filled_sizes": sum(size is None for size in declared),
            "renumbered_annotation_ids": columns["bad_ids"],
            "renumbered_image_ids": 0 if raw_ids.keys() == set(image_ids.tolist()) else len(paths),
        },
    )


def read_categories(annotations: str | Path) -> tuple[Category, ...]:
    """Read the categories of a COCO JSON, sorted by id.

    Raises:
        DataError: as `load_coco`.
    """
    path = Path(annotations)
    return parse_categories(path, read_json(path)["categories"])


def read_image_ids(annotations: str | Path) -> tuple[dict[str, int | float | str], dict[str, int]]:
    """Read {file name: image id} and {category name: category id} of a COCO JSON, the ids as they are in it.

    Raises:
        DataError: as `load_coco`.
    """
    path = Path(annotations)
    tree = read_json(path)
    _parse_image_ids(path, tree["images"])
    image_ids = {os.path.normpath(str(row.get("file_name"))): row["id"] for row in tree["images"]}
    return image_ids, {category.name: category.id for category in parse_categories(path, tree["categories"])}


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

    read_bytes = dataset.bytes_reader()
    for index in range(len(dataset)) if indices is None else indices:
        path, size = dataset.paths[index], tuple(dataset.sizes[index].tolist())
        try:
            image = decode_image(read_bytes(index), tf.constant(dataset.orientations[index], tf.int32))
        except tf.errors.OpError as error:
            return f"image {path}: cannot be decoded ({one_line(error.message)}); replace it or take it out of the set"
        if tuple(image.shape[:2]) != size:
            got = tuple(image.shape[:2])
            return f"image {path}: expected (height, width) {size} as annotated, got {got}; mend one of the two"
    return None


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
    duplicate = first_duplicate(raw)
    if duplicate is not None:
        raise DataError(f"annotations {path}: two images have the id {duplicate!r}; give each image its own id")
    usable = all(is_int(number) and abs(number) < 2**63 for number in raw)
    return {number: i for i, number in enumerate(raw)}, np.array(raw if usable else range(1, len(raw) + 1), np.int64)


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
        if not is_int(category) or category not in known_categories:
            raise DataError(
                f"annotations {path}: annotation {number!r} has category_id {category!r}, which no category has; "
                "add the category or remove the annotation"
            )
        if not is_int(number) or number <= 0 or number in seen:
            bad_ids += 1
        else:
            seen.add(number)
        images.append(image_index[image])
        categories.append(category)
        crowd.append(bool(row.get("iscrowd", 0)))
        boxes.append(box_numbers(row.get("bbox")))
        areas.append(_area(row.get("area")))
    return {
        "image": np.array(images, np.int64),
        "category": np.array(categories, np.int64),
        "iscrowd": np.array(crowd, bool),
        "xywh": np.array(boxes, np.float64).reshape(-1, 4),
        "area": np.array(areas, np.float64),
        "bad_ids": bad_ids,
    }


def _area(value: object) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if usable else math.nan


def _trust_sizes(path: Path, paths: list[str], declared: list[tuple[int, int] | None]) -> np.ndarray:
    if None in declared:
        name = paths[declared.index(None)]
        raise DataError(f"annotations {path}: no height and width for {name}; add them, or load with check_images=True")
    return np.array(declared, np.int32)

"""COCO annotations and their image folder, read and checked once, with errors that name the file.

TensorFlow is not imported here, so data can be checked anywhere.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dh_keras.data.dataset import CLIP_TOLERANCE, CocoDataset, build_dataset
from dh_keras.data.formats.box_formats import corners
from dh_keras.data.formats.coco_entries import (
    image_id_findings,
    parse_categories,
    read_json,
    refuse_errors,
    whole_number,
)
from dh_keras.data.formats.coco_file import CocoFile, read_coco
from dh_keras.data.images import check_images_on_disk
from dh_keras.errors import DataError
from dh_keras.paths import to_path
from dh_keras.run.classes import Category


def load_coco(
    annotations: str | Path,
    images: str | Path,
    *,
    categories: Sequence[Category] | None = None,
    subset: bool = False,
    check_images: bool = True,
) -> CocoDataset:
    """Read a COCO annotation file, check it and its images, and flatten it.

    Args:
        annotations: COCO JSON with `images`, `annotations` and `categories`, or what another tool wrote (`foreign`).
        images: folder that its file names are relative to.
        categories: classes of the model or of the training split; the file must have the same names, its ids may
            differ. None takes the file's categories, sorted by id.
        subset: the file may have some of the categories only, which are then those of the dataset.
        check_images: read the header and the end of every image file, compare sizes and decide how EXIF orientation
            applies. False trusts the sizes of the JSON and takes every image as upright.

    Returns:
        A `CocoDataset`; boxes that cannot be used are dropped and counted, never an error.

    Raises:
        DataError: one line naming the file, what was expected and what to do.
    """
    known = () if subset else [category.name for category in categories or ()]
    file = read_coco(annotations, images, known=known)
    refuse_errors(file.annotations_path, file.errors())
    file.tree["annotations"] = []  # they are columns now, and as many rows are made again for the evaluation
    categories, category_ids = _match_categories(file, categories, subset=subset)
    paths = [image.path for image in file.images]
    declared = [image.declared for image in file.images]
    if check_images:
        sizes, orientations = check_images_on_disk(file.annotations_path, file.images_dir, paths, declared)
    else:
        sizes, orientations = _trust_sizes(file.annotations_path, paths, declared), np.ones(len(paths), np.int32)
    refuse_errors(file.annotations_path, corners("", file.xywh, sizes[file.box_images], tolerance=CLIP_TOLERANCE))
    image_ids, renumbered = _integer_ids([image.id for image in file.images])
    return build_dataset(
        CocoDataset,
        annotations_path=file.annotations_path,
        images_dir=file.images_dir,
        categories=categories,
        category_ids=category_ids,
        image_ids=image_ids,
        paths=paths,
        sizes=sizes,
        orientations=orientations,
        columns={
            "image": file.box_images,
            "category": np.array([category.id for category in file.categories], np.int64)[file.box_classes],
            "iscrowd": file.crowd,
            "xywh": file.xywh,
            "area": file.area,
        },
        category_rows=[{**row, "id": whole_number(row["id"])} for row in file.tree["categories"]],
        file_names=[image.file_name for image in file.images],
        counts={
            "filled_sizes": declared.count(None),
            "renumbered_annotation_ids": len(file.renumbered_rows),
            "renumbered_image_ids": renumbered,
            "ids_as_text_or_with_a_point": len(file.number_rows),
            "boxes_from_polygons": int(file.from_polygon.sum()),
            "files_listed_twice": len(paths) - len(set(paths)),
        },
    )


def read_categories(annotations: str | Path) -> tuple[Category, ...]:
    """Read the categories of a COCO JSON, sorted by id.

    Raises:
        DataError: as `load_coco`.
    """
    path = to_path(annotations)
    return parse_categories(path, read_json(path)["categories"])


def read_image_ids(annotations: str | Path) -> tuple[dict[str, int | float | str], dict[str, int]]:
    """Read {file name: image id} and {category name: category id} of a COCO JSON, the ids as they are in it.

    It needs no annotations.

    Raises:
        DataError: as `load_coco`, and when two images have one file name.
    """
    path = to_path(annotations)
    tree = read_json(path, boxes=False)
    refuse_errors(path, image_id_findings("", tree["images"]))
    image_ids: dict[str, int | float | str] = {}
    for row in tree["images"]:
        name = os.path.normpath(str(row.get("file_name")))
        if name in image_ids:
            raise DataError(
                f"annotations {path}: the images {image_ids[name]!r:.40} and {row['id']!r:.40} have one file_name, "
                f"{name!r}; keep one of them"
            )
        image_ids[name] = row["id"]
    return image_ids, {category.name: category.id for category in parse_categories(path, tree["categories"])}


def _match_categories(
    file: CocoFile, wanted: Sequence[Category] | None, *, subset: bool
) -> tuple[tuple[Category, ...], np.ndarray]:
    """Return the classes and, for each, the id it has in this file."""
    wanted = file.categories if wanted is None else tuple(wanted)
    own_ids = {category.name: category.id for category in file.categories}
    names = {category.name for category in wanted}
    lacking = [category.name for category in wanted if category.name not in own_ids]
    surplus = [name for name in own_ids if name not in names]
    if surplus or (lacking and not subset):
        advice = "" if surplus else ", or add what is missing to 'categories': it needs no boxes"
        raise DataError(
            f"annotations {file.annotations_path}: categories differ from the expected ones: missing {lacking}, not "
            f"expected {surplus}; use files with the same category names{advice}"
        )
    wanted = tuple(category for category in wanted if category.name in own_ids)
    return wanted, np.array([own_ids[category.name] for category in wanted], np.int64)


def _integer_ids(ids: list[int | float | str]) -> tuple[np.ndarray, int]:
    """Return the int64 ids of the images to go on with, and how many were replaced."""
    numbers = [whole_number(number) for number in ids]
    if len(set(numbers)) == len(ids) and all(number is not None and abs(number) < 2**63 for number in numbers):
        return np.array(numbers, np.int64), 0
    return np.arange(1, len(ids) + 1), len(ids)


def _trust_sizes(path: Path, paths: list[str], declared: list[tuple[int, int] | None]) -> np.ndarray:
    if None in declared:
        name = paths[declared.index(None)]
        raise DataError(f"annotations {path}: no height and width for {name}; add them, or load with check_images=True")
    return np.array(declared, np.int32)

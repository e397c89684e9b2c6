"""The rows of a COCO JSON, read and checked one by one, with errors that name the file.

TensorFlow is not imported here, so data can be checked anywhere.
"""

import json
import math
import os
from collections.abc import Hashable, Iterable
from pathlib import Path

from dh_keras.errors import DataError, one_line
from dh_keras.run.classes import Category

NO_BOX = [math.nan] * 4


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


def is_int(value: object) -> bool:
    """Tell a whole number from True and False, which Python counts as such."""
    return isinstance(value, int) and not isinstance(value, bool)


def first_duplicate(values: Iterable[Hashable]) -> Hashable | None:
    """Return the first value that came before, or None."""
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def parse_categories(path: Path, rows: list[dict]) -> tuple[Category, ...]:
    """Check the categories of a file, and sort them by id.

    Args:
        path: the file, for messages.
        rows: objects with an integer `id` and a `name`, each its own.

    Raises:
        DataError: naming the file and the category.
    """
    for row in rows:
        if not is_int(row.get("id")) or not isinstance(row.get("name"), str):
            raise DataError(
                f"annotations {path}: category {row!r:.80}: expected an integer id and a name; mend the file"
            )
    for key in ("id", "name"):
        duplicate = first_duplicate(row[key] for row in rows)
        if duplicate is not None:
            raise DataError(f"annotations {path}: two categories have the {key} {duplicate!r}; give each its own")
    return tuple(sorted((Category(row["id"], row["name"]) for row in rows), key=lambda category: category.id))


def resolve_paths(path: Path, folder: Path, rows: list[dict]) -> list[str]:
    """Join folder and file names, without following links.

    Args:
        path: the JSON, for messages.
        folder: of the images.
        rows: of its `images`.

    Returns:
        Absolute paths; the files need not exist.

    Raises:
        DataError: for a row without file_name, and for a name that leads out of the folder.
    """
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


def declared_size(path: Path, row: dict) -> tuple[int, int] | None:
    """Return the (height, width) of an image in the JSON, in pixels.

    Args:
        path: the JSON, for messages.
        row: of its `images`, with a file_name.

    Returns:
        None when it has none, or the zeros that some converters write.

    Raises:
        DataError: naming the image, when they are no whole numbers from 1.
    """
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


def box_numbers(bbox: object) -> list[float]:
    """Return the four numbers of a COCO bbox, or four NaN when it is something else."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return NO_BOX
    try:
        return [float(value) for value in bbox]
    except (TypeError, ValueError, OverflowError):
        return NO_BOX

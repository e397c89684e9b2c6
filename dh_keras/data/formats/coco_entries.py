"""What a COCO JSON is made of, its categories and its images, each with everything that is wrong with it."""

import codecs
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dh_keras.data.formats.findings import Finding
from dh_keras.data.formats.json_rows import JsonRows, parse_json
from dh_keras.errors import DataError, one_line, reason_of
from dh_keras.files import is_utf8
from dh_keras.paths import absolute, is_remote, normalized
from dh_keras.run.classes import MAX_ID, Category

IMAGE_ID_TYPES = (int, float, str, bool)  # what compares and hashes
_LISTS = ("images", "categories", "annotations")
_MAX_SIDE = 2**31 - 1


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


def read_json(path: Path, *, boxes: bool = True) -> dict[str, Sequence]:
    """Read a COCO JSON and check that it has its three lists.

    Args:
        path: the file.
        boxes: False does without `annotations`, which image_info_test-dev2017.json has not.

    Returns:
        The whole tree, annotations as of `parse_json`; images and categories are not empty.

    Raises:
        DataError: naming the file and what it lacks.
    """
    if not path.is_file():
        raise DataError(f"annotations {path}: no such file; expected a COCO JSON")
    data = b""
    try:
        data = path.read_bytes()
        tree = parse_json(data)
    except OSError as error:
        raise DataError(f"annotations {path}: cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # what > writes in PowerShell
            raise DataError(f"annotations {path}: is UTF-16 text; save it as UTF-8") from error
        raise DataError(
            f"annotations {path}: not valid JSON ({one_line(error)}); write or download it again"
        ) from error
    if not isinstance(tree, dict):
        raise DataError(f"annotations {path}: expected a JSON object, got {type(tree).__name__}; is this a COCO file?")
    for key in _LISTS if boxes else _LISTS[:2]:
        value = tree.get(key)
        if not _is_list_of_objects(value):
            found = "it is missing" if key not in tree else "it is something else"
            raise DataError(
                f"annotations {path}: expected key {key!r} with a list of objects, but {found}; see the COCO format"
            )
    for key in ("images", "categories"):
        if not tree[key]:
            raise DataError(f"annotations {path}: {key!r} is empty; expected at least one, is this the right file?")
    rows = tree["annotations"] if boxes else []
    if "segments_info" in (rows.keys if isinstance(rows, JsonRows) else set().union(*rows)):
        raise DataError(
            f"annotations {path}: is a panoptic file (it has 'segments_info'); expected one with boxes, such as "
            "instances_train2017.json"
        )
    return tree


def _is_list_of_objects(value: object) -> bool:
    if isinstance(value, JsonRows):
        return value.all_objects
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def parse_categories(path: Path, rows: list[dict]) -> tuple[Category, ...]:
    """Check the categories of a file, and sort them by id.

    Args:
        path: the file, for messages.
        rows: objects with an integer `id` below 2^31 and a `name`, each its own.

    Raises:
        DataError: naming the file and the category.
    """
    categories, _, findings = scan_categories("", rows)
    refuse_errors(path, findings)
    return categories


def is_int(value: object) -> bool:
    """Tell a whole number from True and False, which Python counts as such."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole_number(value: object) -> int | None:
    """The number that an id is, also as text or with a point: 7, "7" and 7.0 are 7; None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        digits = re.fullmatch(r"\s*([+-]?[0-9]{1,100})(\.0*)?\s*", value)
        return int(digits[1]) if digits else None
    return value if is_int(value) else None


def is_category_id(number: int) -> bool:
    """Whether an integer fits the int32 that detections are served with."""
    return -MAX_ID <= number <= MAX_ID


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


def scan_categories(split: str, rows: list[dict]) -> tuple[tuple[Category, ...], dict[int, int], list[Finding]]:
    """Return the categories sorted by id, {category id: class index}, and what is wrong."""
    findings: list[Finding] = []
    name_of_id: dict[int, str] = {}
    for row in rows:
        number, name = whole_number(row.get("id")), row.get("name")
        if number is None or not isinstance(name, str) or not is_utf8(name):
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
            if not is_category_id(number):
                message = f"category {name!r} has the id {number!r:.40}, beyond {MAX_ID}"
                refusal = f"{message}; number the categories from 1, or let dh-keras inspect-data --fix do it"
                findings.append(Finding("large_category_id", split, message, refusal=refusal))
            name_of_id[number] = name
    first_ids: dict[str, int] = {}
    for number in sorted(name_of_id):
        first_ids.setdefault(name_of_id[number], number)
    index = {name: position for position, name in enumerate(first_ids)}
    categories = tuple(Category(number, name) for name, number in first_ids.items())
    return categories, {number: index[name] for number, name in name_of_id.items()}, findings


def image_id_findings(split: str, rows: list[dict]) -> list[Finding]:
    """Find images without an id, and those with one that an image before has."""
    findings: list[Finding] = []
    first: dict[object, dict] = {}
    for row in rows:
        number = row.get("id")
        if not isinstance(number, IMAGE_ID_TYPES):
            message = f"{row!r:.80}: expected an id"
            refusal = f"image {message}; number the images"
            findings.append(Finding("bad_image_entry", split, message, refusal=refusal))
        elif first.setdefault(number, row) is not row:
            names = f"{first[number].get('file_name')} and {row.get('file_name')}"
            message = f"{names} have the id {number!r}; its boxes are taken as the first one's"
            refusal = f"two images have the id {number!r}; give each image its own id"
            findings.append(Finding("duplicate_image_id", split, message, refusal=refusal))
    return findings


def scan_images(
    split: str, folder: Path, rows: list[dict]
) -> tuple[list[ImageEntry], dict[object, int], list[Finding]]:
    """Return the entries that name a file, {image id: index of the first of it}, and what is wrong."""
    findings = image_id_findings(split, rows)
    images: list[ImageEntry] = []
    index_of_id: dict[object, int] = {}
    root = absolute(folder)
    roots = tuple(os.path.join(one, "") for one in (root, root if is_remote(root) else os.path.realpath(root)))
    for number, row in enumerate(rows):
        if not isinstance(row.get("id"), IMAGE_ID_TYPES):
            continue
        try:
            entry = ImageEntry(number, row["id"], _resolve(roots, folder, row), _declared_size(row), row["file_name"])
        except ValueError as error:
            findings.append(Finding("bad_image_entry", split, f"{row!r:.80}: {error}", refusal=str(error)))
            continue
        index_of_id.setdefault(entry.id, len(images))
        images.append(entry)
    return images, index_of_id, findings


def _resolve(roots: tuple[str, ...], folder: Path, row: dict) -> str:
    """Return the absolute path of an image below the first root, without following links; refuse one outside them."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name or not is_utf8(name):
        raise ValueError(f"image {row['id']!r:.40}: expected a file_name, got {name!r:.80}; add it")
    full = normalized(os.path.join(roots[0], name))
    if not full.startswith(roots):
        raise ValueError(f"file_name {name!r} leaves the image folder {folder}; expected a name relative to it")
    return full


def _declared_size(row: dict) -> tuple[int, int] | None:
    """Return (height, width); None when there are none, or the zeros that some converters write."""
    size = (row.get("height"), row.get("width"))
    if not all(size):
        return None
    for value in size:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MAX_SIDE or value % 1:
            raise ValueError(
                f"image {row['file_name']!r}: expected whole numbers as height and width, got {size!r:.80}; correct or "
                "remove them"
            )
    return int(size[0]), int(size[1])

"""A cleaned copy of an annotation file. Nothing is guessed about labels; only what training could not use changes."""

from collections import Counter
from pathlib import Path

import numpy as np

from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.coco_entries import (
    is_category_id,
    is_int,
    refuse_errors,
    whole_number,
)
from dh_keras.errors import DataError
from dh_keras.files import is_utf8, new_file, require_absent, write_json
from dh_keras.paths import to_path
from dh_keras.reports.data_doctor.data_checks import box_format_findings, boxes_as_stored
from dh_keras.reports.data_doctor.examined import Examined
from dh_keras.run.classes import MAX_ID

CHOOSE_ANOTHER_FIX = "choose another --fix"

# load_coco rounds boxes to float32; a box that is thinner than this would have no area there.
_MIN_SIDE = 1e-3


def write_fixed(examined: Examined, output: str | Path) -> dict[str, int]:
    """Write a cleaned copy of the annotation file, which `load_coco` takes without dropping or clipping anything.

    Args:
        examined: the split; its file and images are not touched.
        output: JSON file to write; must not exist.

    Returns:
        What was changed, as {"what": how many}, without what did not occur.

    Raises:
        DataError: when the output exists, when nothing is left to train on, or when boxes are no x, y, width, height.
        WriteError: when the disk does not take it.
    """
    output = to_path(output)
    require_absent(output, CHOOSE_ANOTHER_FIX)
    refuse_errors(examined.split.annotations_path, box_format_findings(examined))  # clipped, they would look right
    tree, changes = clean_tree(examined)
    if not tree["images"] or not any(not row.get("iscrowd", 0) for row in tree["annotations"]):
        raise DataError(f"--fix {output}: no image with a box is left; nothing was written")
    with new_file(output, CHOOSE_ANOTHER_FIX) as partial:
        try:
            write_json(partial, tree, indent=None)
        except RecursionError as error:
            raise DataError(f"--fix {output}: the file is nested too deeply to be written again") from error
        load_coco(partial, examined.split.images_dir)
    return changes


def clean_tree(examined: Examined) -> tuple[dict, dict[str, int]]:
    """Return the cleaned COCO tree, a copy, and what was changed; see `write_fixed`."""
    changes: Counter[str] = Counter()
    lists = ("images", "annotations", "categories")
    tree = {key: value for key, value in examined.split.tree.items() if key not in lists}
    tree["categories"], category_ids = _clean_categories(examined, changes)
    stored = boxes_as_stored(examined)
    frames = [facts.stored_size if i in stored else facts.size for i, facts in enumerate(examined.facts)]
    tree["images"], image_ids = _clean_images(examined, frames, changes)
    tree["annotations"] = _clean_annotations(examined, frames, image_ids, category_ids, changes)
    return tree, {what: count for what, count in changes.items() if count}


def _clean_categories(examined: Examined, changes: Counter[str]) -> tuple[list[dict], list[int]]:
    """Return the categories with an id and a name each, and the id of every class index."""
    kept: dict[str, dict] = {}
    ids: set[int] = set()
    for row in examined.split.tree["categories"]:
        number, name = whole_number(row.get("id")), row.get("name")
        if number is None or not isinstance(name, str) or not is_utf8(name):
            changes["categories without id or name left out"] += 1
        elif name in kept:
            changes["categories of the same name merged"] += 1
        elif not is_category_id(number):
            kept[name] = {**row, "id": None}
            changes["categories renumbered, as their ids did not fit 32 bits"] += 1
        elif number in ids:
            kept[name] = {**row, "id": None}
            changes["categories renumbered; their boxes, if any, went to the first of the id"] += 1
        else:
            kept[name] = {**row, "id": number}
            ids.add(number)
            changes["ids of categories that became numbers"] += not is_int(row["id"])
    for row in kept.values():
        if row["id"] is None:
            free = (number for number in range(1, MAX_ID) if number not in ids)
            row["id"] = next(free) if max(ids, default=0) >= MAX_ID else max(ids, default=0) + 1
            ids.add(row["id"])
    return list(kept.values()), [kept[name]["id"] for name in examined.split.class_names]


def _clean_images(examined: Examined, frames: list, changes: Counter[str]) -> tuple[list[dict], list[object]]:
    """Return the rows of images that can be decoded, and the new id of each entry, None for one that is left out."""
    split = examined.split
    rows = split.tree["images"]
    changes["unusable image entries left out"] = len(rows) - len(split.images)
    kept, new_ids, used, paths = [], [], set(), set()
    highest = max([row["id"] for row in rows if is_int(row.get("id"))], default=0)
    for index, (entry, facts) in enumerate(zip(split.images, examined.facts, strict=True)):
        row = dict(rows[entry.row])
        if isinstance(row["id"], float):
            row["id"] = row["id"] if whole_number(row["id"]) is None else int(row["id"])
        new_ids.append(None)
        if facts.error and facts.error[0] != "wrong_size":
            changes["images left out: missing or undecodable"] += 1
            continue
        if row["id"] in used:
            if entry.path in paths:
                changes["images listed twice with one id left out"] += 1
                continue
            highest += 1
            row["id"] = highest
            changes["images renumbered; they have no boxes now, label or remove them"] += 1
        if entry.declared != frames[index]:
            row["height"], row["width"] = frames[index]
            changes["sizes corrected or filled in"] += 1
        used.add(row["id"])
        paths.add(entry.path)
        kept.append(row)
        new_ids[-1] = row["id"]
    return kept, new_ids


def _clean_annotations(
    examined: Examined, frames: list, image_ids: list[object], category_ids: list[int], changes: Counter[str]
) -> list[dict]:
    split, rows = examined.split, examined.split.tree["annotations"]
    changes["annotations of no image or category, or a strange iscrowd, left out"] = len(rows) - len(split.box_rows)
    changes["annotations whose ids became numbers"] = len(split.number_rows)
    highest = max([row["id"] for row in rows if is_int(row.get("id"))], default=0)
    highest, kept, seen, ids = max(highest, 0), [], set(), set()
    scales = _scales(examined, changes)
    for box, (image, number) in enumerate(zip(split.box_images.tolist(), split.box_rows.tolist(), strict=True)):
        row = dict(rows[number])
        row["image_id"], row["category_id"] = image_ids[image], category_ids[split.box_classes[box]]
        if isinstance(row.get("iscrowd"), str | float):
            row["iscrowd"] = int(split.crowd[box])
            changes["iscrowd that became a number"] += 1
        if row["image_id"] is None:
            changes["annotations of images left out"] += 1
            continue
        changes["boxes taken from polygons"] += int(split.from_polygon[box])
        if not _fit_box(row, split.xywh[box] * scales[image], split.area[box], frames[image], changes):
            continue
        key = (row["image_id"], row["category_id"], *row["bbox"], split.crowd[box])
        if key in seen:
            changes["exact copies of boxes left out"] += 1
            continue
        seen.add(key)
        if not is_int(row.get("id")) or row["id"] <= 0 or row["id"] in ids:
            highest += 1
            row["id"] = highest
            changes["annotations renumbered"] += 1
        ids.add(row["id"])
        kept.append(row)
    return kept


def _scales(examined: Examined, changes: Counter[str]) -> np.ndarray:
    """Return float64[N, 4] factors for xywh: not 1 where boxes fit the JSON's wrong size and not the file's."""
    split = examined.split
    scales = np.ones((len(split.images), 4))
    for index, (entry, facts) in enumerate(zip(split.images, examined.facts, strict=True)):
        if not facts.error or facts.error[0] != "wrong_size":
            continue
        ends = examined.whole[split.box_images == index, 2:]
        if (ends > facts.size).any() and (ends <= entry.declared).all():
            height, width = np.array(facts.size) / entry.declared
            scales[index] = width, height, width, height
            changes["images whose boxes were scaled with the size"] += 1
    return scales


def _fit_box(row: dict, xywh: np.ndarray, area: float, size: tuple[int, int], changes: Counter[str]) -> bool:
    """Clip the box of a row to the image; return whether something is left."""
    height, width = size
    start, end = xywh[:2], xywh[:2] + xywh[2:]
    clipped = np.clip([start, end], 0, [width, height])
    sides = clipped[1] - clipped[0]
    if not np.isfinite(xywh).all() or not (xywh[2:] > 0).all() or not (sides > _MIN_SIDE).all():
        changes["boxes without area, or wholly outside, left out"] += 1
        return False
    if not np.array_equal(clipped, [start, end]):
        changes["boxes clipped to the image"] += 1
        bbox = [*clipped[0].tolist(), *sides.tolist()]
    else:
        bbox = xywh.tolist()
    if bbox != row.get("bbox"):
        row["bbox"] = bbox
        row["area"] = float(np.nanmin([area, sides.prod()]))  # of a mask, it is less than the box's
    elif "area" in row and np.isnan(area):
        row["area"] = float(sides.prod())
        changes["areas filled in"] += 1
    return True

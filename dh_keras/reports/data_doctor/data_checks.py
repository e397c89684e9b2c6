"""Faults of files and annotations that can be seen one by one, and images that a set has twice."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dh_keras.data.dataset import CLIP_TOLERANCE
from dh_keras.data.formats.box_formats import corners
from dh_keras.data.formats.findings import Finding
from dh_keras.data.images import near_name
from dh_keras.reports.data_doctor.anchor_coverage import elementwise_iou
from dh_keras.reports.data_doctor.duplicates import near_duplicates
from dh_keras.reports.data_doctor.examined import Examined, rows_by_image

_SAME_OBJECT_IOU = 0.8


def file_findings(examined: Examined) -> list[Finding]:
    """Find files that cannot be used, and what is worth knowing about the others."""
    split, found, seen, turned = examined.split, [], set(), boxes_as_stored(examined)
    of_image = rows_by_image(split.box_images, len(split.images))
    for index, (image, facts) in enumerate(zip(split.images, examined.facts, strict=True)):
        if image.path in seen:
            found.append(Finding("file_listed_twice", split.name, image.file_name, examined.picture(index)))
            continue
        seen.add(image.path)
        if facts.error:
            kind, message = facts.error
            near = near_name(split.images_dir, image.path) if kind == "missing_file" else None
            found.append(Finding(kind, split.name, f"{message}; there is {near}" if near else message))
        for kind, message in facts.notes:
            if kind == "exif_rotated" and examined.good[index]:
                message += ", applied" if facts.orientation != 1 else ", not applied: the JSON has the stored size"
            found.append(Finding(kind, split.name, message, examined.picture(index, of_image[index][:20])))
        if index in turned:
            message = f"{image.file_name}: the size in the JSON is upright, but boxes reach out of it"
            found.append(Finding("boxes_not_upright", split.name, message, examined.picture(index, of_image[index])))
    return found


def boxes_as_stored(examined: Examined) -> set[int]:
    """Return the images that EXIF turns by a quarter, with a box that fits the stored frame and not the upright one."""
    found = set()
    for index, facts in enumerate(examined.facts):
        if facts.error or facts.size == facts.stored_size:
            continue
        ends = examined.whole[examined.split.box_images == index, 2:]
        if ((ends > facts.size).any(axis=1) & (ends <= facts.stored_size).all(axis=1)).any():
            found.add(index)
    return found


def annotation_findings(examined: Examined) -> list[Finding]:
    """Find boxes without area or outside, crowds, images without boxes and categories without use."""
    split, found = examined.split, []
    xywh, turned = split.xywh, boxes_as_stored(examined)
    for box, image in enumerate(split.box_images.tolist()):
        numbers = [None if np.isnan(value) else round(value, 2) for value in xywh[box].tolist()]
        if split.from_polygon[box]:
            message = f"bbox {split.row(box).get('bbox')!r:.40}, its polygon's is {numbers}"
            found.append(examined.box_finding("box_from_polygon", box, message=message))
        if not (np.isfinite(xywh[box]).all() and (xywh[box, 2:] > 0).all()):
            bbox = split.row(box).get("bbox")
            message = f"no bbox of four numbers but {bbox!r:.60}" if None in numbers else f"bbox {numbers}"
            found.append(examined.box_finding("degenerate_box", box, message=message))
        elif examined.good[image] and image not in turned:
            moved = np.abs(examined.whole[box] - examined.boxes[box]).max()
            if moved > CLIP_TOLERANCE:
                height, width = examined.sizes[image]
                inside = (examined.boxes[box, 2:] > examined.boxes[box, :2]).all()
                how = f"reaches {moved:.4g} pixels out of" if inside else "is dropped, as it lies outside"
                where = f"bbox {numbers} {how} {width}x{height}"
                found.append(examined.box_finding("box_outside", box, message=where))
        if split.crowd[box]:
            found.append(examined.box_finding("crowd", box, message=f"bbox {numbers}"))
    filled = set(split.box_images[~split.crowd].tolist())
    for index, image in enumerate(split.images):
        if index not in filled and examined.good[index]:
            found.append(Finding("image_without_boxes", split.name, image.file_name, examined.picture(index)))
    used, crowds = (set(split.box_classes[split.crowd == crowd].tolist()) for crowd in (False, True))
    for index, name in enumerate(split.class_names):
        if index not in used:
            message = f"{name!r}, whose boxes are all crowd" if index in crowds else repr(name)
            found.append(Finding("unused_category", split.name, message))
    found += _corner_boxes(examined)
    if not examined.usable.any():
        found.append(Finding("no_boxes", split.name, f"{split.annotations_path}: no usable box"))
    return found


def _corner_boxes(examined: Examined) -> list[Finding]:
    known = examined.good[examined.split.box_images]
    sizes = examined.sizes[examined.split.box_images[known]]
    return corners(examined.split.name, examined.split.xywh[known], sizes, tolerance=CLIP_TOLERANCE)


def box_format_findings(examined: Examined) -> list[Finding]:
    """Find whole files of boxes that are no x, y, width and height in pixels."""
    return examined.split.unlike_coco() + _corner_boxes(examined)


def boxed_twice(examined: Examined) -> list[Finding]:
    """Find pairs of boxes of an image that cover the same object: IoU above 0.8."""
    found = []
    for rows in boxes_by_image(examined):
        boxes = examined.boxes[rows]
        iou = elementwise_iou(boxes[:, None], boxes)
        for i, j in np.argwhere(np.triu(iou > _SAME_OBJECT_IOU, 1)):
            same = examined.class_of(rows[i]) == examined.class_of(rows[j])
            kind = "boxed_twice" if same else "boxed_as_two_classes"
            found.append(examined.box_finding(kind, rows[i], rows[j], message=f"IoU {iou[i, j]:.2f}"))
    return found


def boxes_by_image(examined: Examined) -> list[np.ndarray]:
    """Return the indices of the usable boxes of each image that has some, in the order of the file."""
    rows = np.flatnonzero(examined.usable)
    groups = rows_by_image(examined.split.box_images[rows], len(examined.split.images))
    return [rows[group] for group in groups if len(group)]


def split_differences(splits: Sequence[Examined]) -> list[Finding]:
    """Find categories that one split has and the other lacks, by name."""
    if len(splits) < 2:
        return []
    count = Counter(name for examined in splits for name in set(examined.split.class_names))
    return [
        Finding("category_in_one_split", examined.split.name, f"{name!r} is in {examined.split.annotations_path} only")
        for examined in splits
        for name in examined.split.class_names
        if count[name] == 1
    ]


def duplicate_images(splits: Sequence[Examined]) -> list[Finding]:
    """Find images that look the same, within a split and across; an entry that is listed twice counts once."""
    places: dict[tuple[str, str], tuple[Examined, int]] = {}
    for examined in splits:
        for index, image in enumerate(examined.split.images):
            if examined.good[index]:
                places.setdefault((examined.split.name, image.path), (examined, index))
    chosen = list(places.values())
    if not chosen:
        return []
    thumbnails = np.stack([examined.facts[index].thumbnail for examined, index in chosen])
    sets = np.array([examined.split.name for examined, _ in chosen])
    found = []
    for i, j, correlation in near_duplicates(thumbnails, sets):
        (one, first), (other, second) = chosen[i], chosen[j]
        kind, split, names = "near_duplicate_within", one.split.name, ("", "")
        if one is not other:
            kind, split, names = "near_duplicate_across", "train, val", (f"{one.split.name} ", f"{other.split.name} ")
        files = one.split.images[first].file_name, other.split.images[second].file_name
        message = f"{names[0]}{files[0]} and {names[1]}{files[1]}: correlation {correlation:.2f}"
        found.append(Finding(kind, split, message, one.picture(first) + other.picture(second)))
    return found

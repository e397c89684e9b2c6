"""A COCO file as it is: rows that `load_coco` would refuse become findings, the others can still be looked at.

Letters: N images, M boxes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dh_keras.reports.data_doctor.findings import Finding
from dh_keras.data.formats.coco_rows import box_numbers, declared_size, is_int, read_json, resolve_paths
from dh_keras.errors import DataError


@dataclass(frozen=True)
class ImageEntry:
    """An image of the file.

    Args:
        row: its index in the JSON's `images`.
        path: absolute path of its file, which need not exist.
        declared: (height, width) of the JSON in pixels, or None.
        file_name: as in the JSON.
    """

    row: int
    path: str
    declared: tuple[int, int] | None
    file_name: str


@dataclass
class Split:
    """The usable rows of an annotation file.

    Args:
        name: "train" or "val".
        annotations_path: the COCO JSON.
        images_dir: folder that its file names start from.
        tree: the JSON itself.
        images: N entries.
        class_names: of the categories, sorted by id, without duplicates.
        box_rows: int64[M], index of each box in the JSON's `annotations`.
        box_images: int64[M], index into `images`.
        box_classes: int64[M], index into `class_names`.
        xywh: float64[M, 4], as in the file; NaN where there are no four numbers.
        crowd: bool[M].
    """

    name: str
    annotations_path: Path
    images_dir: Path
    tree: dict
    images: list[ImageEntry]
    class_names: list[str]
    box_rows: np.ndarray
    box_images: np.ndarray
    box_classes: np.ndarray
    xywh: np.ndarray
    crowd: np.ndarray

    def annotation_id(self, box: int) -> object:
        """Return the id of box `box`, as in the file."""
        return self.tree["annotations"][self.box_rows[box]].get("id")


def read_split(name: str, annotations: str | Path, images_dir: str | Path) -> tuple[Split, list[Finding]]:
    """Read an annotation file leniently.

    Args:
        name: "train" or "val", for the findings.
        annotations: COCO JSON.
        images_dir: folder of its images.

    Returns:
        What can be used, and a finding for every row that cannot.

    Raises:
        DataError: when the file is no COCO JSON, or the folder is missing or empty.
    """
    path, folder = Path(annotations), Path(images_dir)
    tree = read_json(path)
    if not folder.is_dir():
        raise DataError(f"images folder {folder}: no such folder; give the folder that file_name in {path} starts from")
    if next(folder.iterdir(), None) is None:
        raise DataError(f"images folder {folder}: is empty; give the folder that file_name in {path} starts from")
    findings: list[Finding] = []
    class_of_id, class_names = _read_categories(name, tree["categories"], findings)
    images, image_of_id = _read_images(name, path, folder, tree["images"], findings)
    used = _read_boxes(name, tree["annotations"], image_of_id, class_of_id, findings)
    rows, box_images, box_classes = np.array(used, np.int64).reshape(-1, 3).T
    boxes = [tree["annotations"][row] for row in rows]
    split = Split(
        name=name,
        annotations_path=path,
        images_dir=folder,
        tree=tree,
        images=images,
        class_names=class_names,
        box_rows=rows,
        box_images=box_images,
        box_classes=box_classes,
        xywh=np.array([box_numbers(box.get("bbox")) for box in boxes], np.float64).reshape(-1, 4),
        crowd=np.array([bool(box.get("iscrowd", 0)) for box in boxes], bool),
    )
    return split, findings


def _read_categories(split: str, rows: list[dict], findings: list[Finding]) -> tuple[dict[int, int], list[str]]:
    """Return {category id: class index} and the class names; the first of two equal ids or names counts."""
    name_of_id: dict[int, str] = {}
    for row in rows:
        number, name = row.get("id"), row.get("name")
        if not is_int(number) or not isinstance(name, str):
            findings.append(Finding("bad_category", split, f"category {row!r:.80}: expected an integer id and a name"))
        elif number in name_of_id:
            both = f"categories {name_of_id[number]!r} and {name!r} have the id {number}"
            findings.append(Finding("duplicate_category", split, both))
        else:
            if name in name_of_id.values():
                findings.append(Finding("duplicate_category", split, f"two categories have the name {name!r}"))
            name_of_id[number] = name
    names = list(dict.fromkeys(name_of_id[number] for number in sorted(name_of_id)))
    return {number: names.index(name) for number, name in name_of_id.items()}, names


def _read_images(
    split: str, path: Path, folder: Path, rows: list[dict], findings: list[Finding]
) -> tuple[list[ImageEntry], dict[object, int]]:
    """Return the entries that name a file, and {image id: index}; the first of two equal ids has the boxes."""
    images: list[ImageEntry] = []
    index_of_id: dict[object, int] = {}
    for number, row in enumerate(rows):
        image_id = row.get("id")
        try:
            if not isinstance(image_id, int | float | str):
                raise DataError(f"annotations {path}: expected an id")
            [full], declared = resolve_paths(path, folder, [row]), declared_size(path, row)
        except DataError as error:
            findings.append(Finding("bad_image_entry", split, f"{row!r:.80}: {_reason(error, path)}"))
            continue
        if image_id in index_of_id:
            first = images[index_of_id[image_id]].file_name
            message = f"{first} and {row['file_name']} have the id {image_id!r}; its boxes are taken as the first one's"
            findings.append(Finding("duplicate_image_id", split, message))
        index_of_id.setdefault(image_id, len(images))
        images.append(ImageEntry(number, full, declared, row["file_name"]))
    return images, index_of_id


def _read_boxes(
    split: str, rows: list[dict], image_of_id: dict, class_of_id: dict, findings: list[Finding]
) -> list[tuple[int, int, int]]:
    """Return (row, image index, class index) of every annotation that belongs to an image and a category."""
    used, seen = [], set()
    for number, row in enumerate(rows):
        own, image, category = row.get("id"), row.get("image_id"), row.get("category_id")
        if not is_int(own) or own <= 0 or own in seen:
            message = f"annotation {number + 1} of the file has the id {own!r:.40}"
            findings.append(Finding("duplicate_annotation_id", split, message, annotation_ids=(own,)))
        else:
            seen.add(own)
        if not isinstance(image, int | float | str) or image not in image_of_id:
            message = f"annotation {own!r:.40} has image_id {image!r:.40}, which no image has"
        elif not is_int(category) or category not in class_of_id:
            message = f"annotation {own!r:.40} has category_id {category!r:.40}, which no category has"
        else:
            used.append((number, image_of_id[image], class_of_id[category]))
            continue
        findings.append(Finding("bad_reference", split, message, annotation_ids=(own,)))
    return used


def _reason(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"annotations {path}: ")

"""From a folder or a file of another format to the tree of a COCO JSON: recognise, read, number."""

import csv
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dh_keras.data.formats.foreign.cvat import read_cvat
from dh_keras.data.formats.foreign.image_files import ImageFiles, files_below
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledImage, box_reader
from dh_keras.data.formats.foreign.labelme import read_labelme
from dh_keras.data.formats.foreign.open_images import COLUMNS, read_open_images
from dh_keras.data.formats.foreign.voc import read_voc
from dh_keras.data.formats.foreign.yolo import read_description, read_yolo
from dh_keras.data.images import upright_frame
from dh_keras.errors import DataError
from dh_keras.paths import is_remote, to_path

READERS: dict[str, Callable[[list[Path], ImageFiles], Labelled]] = {
    "Pascal VOC": read_voc,
    "YOLO": read_yolo,
    "LabelMe": read_labelme,
    "CVAT for images": read_cvat,
    "Open Images": read_open_images,
}
COCO = "COCO JSON"
_SUFFIXES = (".xml", ".yaml", ".yml", ".csv", ".json")
_LOOKED_AT = 20  # files of each ending that tell the format of a folder
_HEAD = 65536


def is_foreign(path: str | Path) -> bool:
    """Whether annotations are no COCO JSON: a folder, or a file whose name ends like those of other tools."""
    return not is_remote(path) and (Path(path).is_dir() or Path(path).suffix.lower() in _SUFFIXES[:-1])


def recognise(source: Path) -> tuple[str, list[Path]]:
    """Tell the format of a file, or of the files below a folder, by their content.

    Returns:
        One of `READERS` or `COCO`, and its files.

    Raises:
        DataError: when there is none, or more than one.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    files = files_below(source) if source.is_dir() else [source]
    if files == [source] and source.suffix.lower() in (".yaml", ".yml"):
        read_description(source)  # or say what is wrong with it; a folder may hold others
    by_suffix = {suffix: [path for path in files if path.suffix.lower() == suffix] for suffix in _SUFFIXES}
    found: dict[str, list[Path]] = {}
    for paths in by_suffix.values():
        told = {path: _format_of(path) for path in paths[:_LOOKED_AT]}
        kinds = {kind for kind in told.values() if kind}
        for kind in kinds:  # a folder of one kind may have thousands
            rest = (
                paths[_LOOKED_AT:]
                if len(kinds) == 1
                else [one for one in paths[_LOOKED_AT:] if _format_of(one) == kind]
            )
            found.setdefault(kind, []).extend([*(path for path in paths[:_LOOKED_AT] if told[path] == kind), *rest])
    if not found:
        known = ", ".join([*READERS, COCO])
        raise DataError(f"{source}: no annotations were recognised; expected one of {known}; YOLO needs its YAML file")
    if len(found) > 1:
        both = " and ".join(f"{kind} ({paths[0]})" for kind, paths in found.items())
        raise DataError(f"{source}: holds {both}; give the folder or the file of one of them")
    return next(iter(found.items()))


def _format_of(path: Path) -> str | None:
    """Return one of `READERS` or `COCO`, or None for a file of something else."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    match path.suffix.lower():
        case ".xml":
            tag = re.search(r"<([A-Za-z_][\w.-]*)", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))
            return {"annotation": "Pascal VOC", "annotations": "CVAT for images"}.get(tag[1] if tag else "")
        case ".csv":
            columns = next(csv.reader(text.splitlines()[:1]), [])
            return "Open Images" if set(COLUMNS) <= set(columns) else None
        case ".json":
            if re.search(r'"shapes"\s*:', text):
                return "LabelMe"
            return COCO if re.search(r'"(images|annotations|categories|image_id)"\s*:', text) else None
    try:
        read_description(path)
    except DataError:
        return None
    return "YOLO"


def read_labelled(source: Path, images_dir: Path) -> Labelled:
    """Recognise and read.

    Args:
        source: a folder or file of one of `READERS`.
        images_dir: folder that the images are somewhere below.

    Raises:
        DataError: naming the file, when it cannot be recognised, or no box of it can be used.
    """
    kind, files = recognise(source)
    if kind == COCO:
        raise DataError(f"{source}: is a folder of a COCO JSON; give the file itself: {files[0]}")
    box_reader(source)  # or say what is missing
    images = ImageFiles(images_dir)
    if not images.paths:
        raise DataError(f"images folder {images_dir}: has no images; give the folder that holds those of {source}")
    found = READERS[kind](files, images)
    _merge_images(found)
    if not any(image.boxes for image in found.images):
        reason = found.faults[0] if found.faults else f"none is given for an image below {images_dir}"
        raise DataError(f"{source}: {kind}, and no box in it can be used: {reason}")
    return found


def _merge_images(found: Labelled) -> None:
    """Join what several files say of one image; where they are for one image each, the second is a fault."""
    entries: dict[str, LabelledImage] = {}
    for image in found.images:
        first = entries.setdefault(image.path, image)
        if first is not image and first.source != image.source:
            found.fault(image.source, None, f"is about {image.path}, as {first.source} is already")
        elif first is not image:
            first.boxes += image.boxes
    found.images = sorted(entries.values(), key=lambda image: image.path)


def coco_tree(found: Labelled, images_dir: str | Path, *, names: Sequence[str]) -> dict[str, list[dict]]:
    """Number images, boxes and classes from 1, and make the tree of a COCO JSON.

    Args:
        found: what was read; its images are below images_dir.
        images_dir: folder that file names start from.
        names: the classes, in order.
    """
    ids = {name: number for number, name in enumerate(names, start=1)}
    rows, boxes = [], []
    for number, image in enumerate(found.images, start=1):
        row = {"id": number, "file_name": Path(os.path.relpath(image.path, os.path.abspath(images_dir))).as_posix()}
        rows.append(row | (dict(zip(("height", "width"), image.size, strict=True)) if image.size else {}))
        for box in image.boxes:
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": ids[box.name],
                    "bbox": list(box.xywh),
                    "area": box.xywh[2] * box.xywh[3] if box.area is None else box.area,
                    "iscrowd": int(box.crowd),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": rows, "annotations": boxes, "categories": categories}


def class_names(found: Labelled, known: Sequence[str] = ()) -> list[str]:
    """Return the classes: as listed, or those of the boxes by the alphabet, behind those that are known already."""
    seen = {box.name for image in found.images for box in image.boxes}
    listed = list(known) if found.classes is None else found.classes
    return list(dict.fromkeys([*listed, *sorted(seen)]))


def read_foreign(source: str | Path, images_dir: str | Path, *, known: Sequence[str] = ()) -> dict[str, list[dict]]:
    """Read annotations of another format as the tree of a COCO JSON.

    Args:
        source: see `is_foreign`.
        images_dir: folder that the images are somewhere below; others are left out.
        known: names of classes that need no boxes, where the source has no list of its own.

    Raises:
        DataError: for the first thing that cannot be read.
    """
    path, folder = to_path(source), to_path(images_dir)
    found = read_labelled(path, folder)
    if found.faults:
        more = f" ({len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        raise DataError(f"{found.faults[0]}{more}; mend it, or let dh-keras import-data leave it out")
    for image in found.images:
        frame = image.size or upright_frame(image.path, None)
        if isinstance(frame, str):
            raise DataError(frame)
        image.size = image.size or frame[0]
    _say(f"{path}: {describe(found)}")
    return coco_tree(found, folder, names=class_names(found, known))


@functools.cache
def _say(line: str) -> None:
    """Print a line once, however often the data is read."""
    print(line)


def describe(found: Labelled) -> str:
    """Say what was recognised and decided, in one line."""
    boxes = sum(len(image.boxes) for image in found.images)
    left_out = [f"left out: {count} {what}" for what, count in found.left_out.items() if count]
    return "; ".join([f"{found.format}, {len(found.images)} images, {boxes} boxes", *found.notes, *left_out])

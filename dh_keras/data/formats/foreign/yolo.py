"""YOLO: a text file of boxes for each image, in shares of it, and a YAML file that names the classes and the images."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledImage, box_reader
from dh_keras.data.images import upright_frame
from dh_keras.errors import DataError, one_line

if TYPE_CHECKING:
    from globox import BoundingBox

PARTS = ("train", "val", "test")
EXPECTED = "a class and shares of the image: x and y of the middle, width, height; or a polygon of 3 points or more"


def read_yolo(files: list[Path], images: ImageFiles) -> Labelled:
    """Read what a YAML file describes; an image without a text file has no objects.

    Raises:
        DataError: when the YAML file is none of YOLO's, or leads to no images or no text files.
    """
    if len(files) > 1:
        raise DataError(f"{files[0].parent}: has {len(files)} YAML files with names; give one of them as SOURCE")
    (path,) = files
    described = read_description(path)
    names = dict(enumerate(described["names"])) if isinstance(described["names"], list) else described["names"]
    found = Labelled("YOLO", classes=[str(name) for _, name in sorted(names.items())])
    pose, labels = "kpt_shape" in described, 0
    for part, image in _listed_images(found, path, described, images):
        frame = upright_frame(image, None)
        if isinstance(frame, str):
            found.fault(path, None, frame)
            continue
        entry = LabelledImage(image, frame[0], part=part, source=str(path))
        found.images.append(entry)
        text = _label_file(image, path.parent)
        if text is not None:
            labels += 1
            _read_labels(found, text, entry, names, pose)
    if not labels:
        raise DataError(f"{path}: none of its {len(found.images)} images below {images.root} has a text file of boxes")
    if len(found.images) > labels:
        found.notes.append(
            f"{len(found.images) - labels} images without a text file are taken as images without objects"
        )
    return found


def read_description(path: Path) -> dict[str, Any]:
    """Read a YAML file with `names`, a list or a dict from class numbers.

    Raises:
        DataError: when it is anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DataError(f"{path}: {line}no YAML: {error.problem}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if not (
        names and (isinstance(names, list) or (isinstance(names, dict) and all(type(key) is int for key in names)))
    ):
        raise DataError(f"{path}: expected names, a list of classes or one from their numbers")
    return content


def _listed_images(
    found: Labelled, path: Path, described: dict[str, Any], images: ImageFiles
) -> Iterator[tuple[str, str]]:
    """Yield (part, absolute path) of each image below the root, once."""
    seen: set[str] = set()
    places = {part: described[part] for part in PARTS if described.get(part)} or {"": "."}
    for part, value in places.items():
        for text in value if isinstance(value, list) else [value]:
            place = _resolve(path, str(described.get("path") or ""), str(text))
            if place is None and part != "test":  # many name one that they do not bring
                raise DataError(f"{path}: {part}: {text}: no such folder or list of images; correct the path")
            if place is None:
                continue
            for image in images.below(place) if place.is_dir() else _read_list(found, place, images):
                if image not in seen:
                    seen.add(image)
                    yield part, image


def _resolve(path: Path, base: str, text: str) -> Path | None:
    """Find a folder or list: below `path:`, beside the YAML file, or where Roboflow puts what it calls ../train."""
    inside = Path(*[part for part in Path(text).parts if part != ".."] or ["."])
    for place in (path.parent / base / text, path.parent / text, path.parent / inside):
        if place.exists():
            return place
    return None


def _read_list(found: Labelled, path: Path, images: ImageFiles) -> list[str]:
    """Return the images that a text file lists and that are below the root."""
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    listed = [images.find(line, path) for line in lines if line.strip()]
    found.left_out[f"images of {path.name} that are not below {images.root}"] += listed.count(None)
    return [image for image in listed if image is not None]


def _label_file(image: str, folder: Path) -> Path | None:
    """Find the text file of an image: in labels/ for images/, beside it, or in the folder of the YAML file."""
    path = Path(image).with_suffix(".txt")
    candidates = [path, folder / path.name, folder / "labels" / path.name]
    turned = [number for number, part in enumerate(path.parts[:-1]) if part == "images"]
    if turned:
        parts = list(path.parts)
        parts[turned[-1]] = "labels"
        candidates.insert(0, Path(*parts))
    return next((one for one in candidates if one.is_file()), None)


def _read_labels(found: Labelled, path: Path, entry: LabelledImage, names: dict[int, Any], pose: bool) -> None:
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        if not words[0].isdecimal() or int(words[0]) not in names:
            found.fault(path, number, f"class {words[0]!r:.40}, which the names of {entry.source} do not have")
            continue
        words[0] = str(names[int(words[0])])
        box = found.read_box(path, number, EXPECTED, _make_box, path, words, pose, entry.size)
        if box is not None:
            entry.boxes.append(box)


def _make_box(path: Path, words: list[str], pose: bool, size: tuple[int, int]) -> "BoundingBox":
    """Return the box of a line: its class, four numbers, and a score or key points; or the one around a polygon."""
    label, *numbers = words
    read = box_reader(path)
    if len(numbers) >= 6 and not pose:
        box = read.from_yolo_seg(" ".join(["0", *numbers]), image_size=size[::-1])
    else:
        box = read.from_yolo_v5(" ".join(["0", *(numbers[:4] if pose else numbers)]), image_size=size[::-1])
    box.label = label
    return box

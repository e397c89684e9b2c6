"""CVAT for images: one XML file for all of them."""

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledBox, LabelledImage, box_reader
from dh_keras.data.formats.foreign.xml_lines import read_each, whole_size

if TYPE_CHECKING:
    from globox import BoundingBox

OTHER_SHAPES = ("polyline", "points", "ellipse", "cuboid", "mask", "skeleton")


def read_cvat(files: list[Path], images: ImageFiles) -> Labelled:
    """Read annotation files; boxes and polygons are taken, other shapes counted."""
    found = Labelled("CVAT for images")
    for path, root, lines in read_each(found, files):
        track = root.find("track")
        if track is not None:
            found.fault(path, lines[track], "tracks of a video; export the task as 'CVAT for images 1.1'")
        _read_labels(found, root)
        for node in root.iter("image"):
            _read_image(found, path, node, lines, images)
    return found


def _read_labels(found: Labelled, root: Element) -> None:
    """Take the names of the task, which boxes need not have all of."""
    meta = root.find("meta")
    names = [] if meta is None else [label.findtext("name") for label in meta.iter("label")]
    known = found.classes or []
    found.classes = [*known, *(name for name in names if name and name not in known)] or None


def _read_image(found: Labelled, path: Path, node: Element, lines: dict[Element, int], images: ImageFiles) -> None:
    name = node.get("name") or ""
    image = images.find(name, path) if name else None
    if image is None:
        found.fault(path, lines[node], f"no image {name!r}, or more than one, below {images.root}")
        return
    try:
        size = whole_size(node.get("width"), node.get("height"))
    except ValueError:
        found.fault(path, lines[node], "expected width and height in whole pixels")
        return
    boxes: list[LabelledBox | None] = []
    for shape in node:
        if shape.tag in TAKEN:
            expected, read = TAKEN[shape.tag]
            boxes.append(found.read_box(path, lines[shape], expected, read, path, shape))
        elif shape.tag in OTHER_SHAPES:
            found.left_out[f"{shape.tag} shapes"] += 1
    found.images.append(LabelledImage(image, size, [box for box in boxes if box is not None], source=str(path)))


def _read_box(path: Path, node: Element) -> "BoundingBox":
    if float(node.get("rotation") or 0):
        raise ValueError("rotated")
    return box_reader(path).from_cvat(node)


def _read_polygon(path: Path, node: Element) -> "BoundingBox":
    """Return the box around a polygon."""
    points = [[float(number) for number in point.split(",")] for point in node.get("points", "").split(";")]
    return box_reader(path).from_labelme({"label": node.get("label") or "", "points": points})


TAKEN = {
    "box": ("an upright box with a label, and numbers, xtl up to xbr and ytl up to ybr", _read_box),
    "polygon": ("a label, and points x,y;x,y;x,y", _read_polygon),
}

"""Pascal VOC: an XML file for each image.

The devkit counts pixels from 1, and a box covers both of its corner pixels: in continuous coordinates it reaches from
xmin - 1 to xmax. Many tools write the same file with corners that are continuous coordinates or count from 0. Where any
corner of a data set is below 1, none is taken as the devkit's.
"""

from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledBox, LabelledImage, box_reader
from dh_keras.data.formats.foreign.xml_lines import read_each, whole_size

EXPECTED = "a name, and a bndbox with numbers, xmin up to xmax and ymin up to ymax"


def read_voc(files: list[Path], images: ImageFiles) -> Labelled:
    """Read annotation files; their images are those of the same name, or of the name that they give."""
    found = Labelled("Pascal VOC")
    for path, root, lines in read_each(found, files):
        image = _find_image(found, path, root, lines, images)
        if image is None:
            continue
        for node in root.iter("object"):
            box = found.read_box(path, lines[node], EXPECTED, box_reader(path).from_xml, node)
            if box is not None:
                image.boxes.append(replace(box, name=box.name.strip()))
        found.images.append(image)
    boxes = [box for image in found.images for box in image.boxes]
    if all(min(box.xywh[:2]) >= 1 for box in boxes):
        found.notes.append("corners are pixels counted from 1, as in the devkit: no box begins below 1")
        for image in found.images:
            image.boxes = [_covers_both_corners(box) for box in image.boxes]
    else:
        found.notes.append("corners are coordinates counted from 0: boxes begin below 1")
    return found


def _find_image(
    found: Labelled, path: Path, root: Element, lines: dict[Element, int], images: ImageFiles
) -> LabelledImage | None:
    if root.tag != "annotation":
        found.fault(path, lines[root], f"expected an element annotation, got {root.tag}")
        return None
    node, size = root.find("filename"), root.find("size")
    name = ((node.text if node is not None else None) or "").strip()
    image = images.find_stem(path.stem, path) or (images.find(name, path) if name else None)
    if image is None:
        line = lines[root if node is None else node]
        found.fault(path, line, f"no image {path.stem} or {name!r}, or more than one, below {images.root}")
        return None
    try:
        declared = None if size is None else whole_size(size.findtext("width"), size.findtext("height"))
    except ValueError:
        found.fault(path, lines[size], "expected width and height in whole pixels")
        return None
    return LabelledImage(image, declared, source=str(path))


def _covers_both_corners(box: LabelledBox) -> LabelledBox:
    left, top, width, height = box.xywh
    return replace(box, xywh=(left - 1, top - 1, width + 1, height + 1))

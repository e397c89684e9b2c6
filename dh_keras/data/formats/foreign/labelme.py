"""LabelMe: a JSON file for each image."""

import json
import re
from pathlib import Path
from typing import Any

from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledImage, box_reader
from dh_keras.data.formats.foreign.xml_lines import whole_size
from dh_keras.errors import one_line

EXPECTED = "a shape with a label and points [[x, y], ...]"
WITH_BOX = ("rectangle", "polygon", "mask")


def read_labelme(files: list[Path], images: ImageFiles) -> Labelled:
    """Read annotation files; rectangles are taken, and the boxes of polygons; other shapes are counted."""
    found = Labelled("LabelMe")
    for path in files:
        try:
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text)
        except json.JSONDecodeError as error:
            found.fault(path, error.lineno, f"no JSON: {error.msg}")
            continue
        except (OSError, ValueError, RecursionError) as error:
            found.fault(path, None, f"cannot be read: {one_line(error)}")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            found.fault(path, None, "expected a LabelMe file, an object with a list of shapes")
            continue
        _read_image(found, path, text, content, images)
    return found


def _read_image(found: Labelled, path: Path, text: str, content: dict[str, Any], images: ImageFiles) -> None:
    name = str(content.get("imagePath") or "")
    image = (images.find(name, path) if name else None) or images.find_stem(path.stem, path)
    if image is None:
        line = _line_of(text, "imagePath", 0, 1)
        found.fault(path, line, f"no image {name!r} or {path.stem}, or more than one, below {images.root}")
        return
    try:
        size = whole_size(content.get("imageWidth"), content.get("imageHeight"))
    except (TypeError, ValueError):
        found.fault(path, _line_of(text, "imageWidth", 0, 1), "expected imageWidth and imageHeight in whole pixels")
        return
    entry = LabelledImage(image, size, source=str(path))
    shapes = content["shapes"]
    for number, shape in enumerate(shapes):
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else "rectangle"
        if kind not in WITH_BOX:
            found.left_out[f"{kind} shapes"] += 1
            continue
        line = _line_of(text, "points", number, len(shapes))
        box = found.read_box(path, line, EXPECTED, box_reader(path).from_labelme, shape)
        if box is not None:
            entry.boxes.append(box)
    found.images.append(entry)


def _line_of(text: str, key: str, number: int, count: int) -> int | None:
    """Return the line of a key that each of so many objects has once; None where that is not so."""
    places = [match.start() for match in re.finditer(rf'"{key}"\s*:', text)]
    return text.count("\n", 0, places[number]) + 1 if len(places) == count else None

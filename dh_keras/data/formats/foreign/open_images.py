"""Open Images: a CSV file with a row for each box, in shares of its image."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.labelled import Labelled, LabelledImage, box_reader
from dh_keras.data.images import upright_frame
from dh_keras.errors import one_line

if TYPE_CHECKING:
    from globox import BoundingBox

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
NAMES_FILE = "*class-descriptions*.csv"
EXPECTED = "a LabelName, and shares of the image, XMin up to XMax and YMin up to YMax"


def read_open_images(files: list[Path], images: ImageFiles) -> Labelled:
    """Read tables; rows of images that are not there are counted, as the tables hold millions."""
    found = Labelled("Open Images")
    entries: dict[str, LabelledImage | None] = {}
    for path in files:
        names = _read_names(path.parent)
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file)
            try:
                for row in rows:
                    _read_row(found, path, rows.line_num, row, names, entries, images)
            except csv.Error as error:
                found.fault(path, rows.line_num, f"no CSV: {one_line(error)}")
    found.images = [entry for entry in entries.values() if entry is not None]
    return found


def _read_row(
    found: Labelled,
    path: Path,
    line: int,
    row: dict[str, str],
    names: dict[str, str],
    entries: dict[str, LabelledImage | None],
    images: ImageFiles,
) -> None:
    number = row.get("ImageID") or ""
    if number not in entries:
        entries[number] = _find_image(found, path, line, number, images)
    entry = entries[number]
    if entry is None:
        found.left_out["rows of images that are not there"] += 1
        return
    box = found.read_box(path, line, EXPECTED, _make_box, path, row, names, entry.size)
    if box is not None:
        entry.boxes.append(replace(box, crowd=row.get("IsGroupOf") == "1"))


def _read_names(folder: Path) -> dict[str, str]:
    """Return {label: name that people use} of the table beside those of the boxes, if there is one."""
    names: dict[str, str] = {}
    for path in sorted(folder.glob(NAMES_FILE)):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            names |= {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}
    return names


def _find_image(found: Labelled, path: Path, line: int, number: str, images: ImageFiles) -> LabelledImage | None:
    image = images.find_stem(number, path) or (images.find(number, path) if number else None)
    if image is None:
        return None
    frame = upright_frame(image, None)
    if isinstance(frame, str):
        found.fault(path, line, frame)
        return None
    return LabelledImage(image, frame[0], source=str(path))


def _make_box(path: Path, row: dict[str, str], names: dict[str, str], size: tuple[int, int]) -> "BoundingBox":
    label = row["LabelName"]
    return box_reader(path).create(
        label=names.get(label, label),
        coords=tuple(float(row[key]) for key in ("XMin", "YMin", "XMax", "YMax")),
        relative=True,
        image_size=size[::-1],
    )

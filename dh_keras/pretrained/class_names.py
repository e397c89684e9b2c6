"""Names for the classes of a checkpoint, whose tensors know only their number."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dh_keras.errors import DataError
from dh_keras.run.classes import Category

COCO_NAMES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush""".replace("\n", " ").split(",")
)
COCO_NAMES = tuple(" ".join(name.split()) for name in COCO_NAMES)
# COCO numbers 91 categories and annotates 80 of them.
COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(id_ for id_ in range(1, 91) if id_ not in COCO_UNUSED_IDS)


def name_classes(
    num_classes: int, *, names_file: str | Path | None = None, own_names: Sequence[str] | None = None
) -> tuple[Category, ...]:
    """Categories for a checkpoint's classes, in class order.

    Args:
        num_classes: K.
        names_file: what the user gave: a text file with a name per line, or a JSON list of names or of {"id", "name"}.
        own_names: what the checkpoint says; used when there is no file and the number is right.

    Returns:
        K categories. Without names, 80 classes are COCO's and others are class_1, class_2, ...; ids count from 1, but
        COCO's names get COCO's ids.

    Raises:
        DataError: when the file cannot be read, or has another number of names, or one of them twice.
    """
    if names_file is not None:
        rows = _read_names(Path(names_file))
        if len(rows) != num_classes:
            raise DataError(f"{names_file}: has {len(rows)} class names, but the checkpoint has {num_classes} classes")
        if all(isinstance(row, Category) for row in rows):
            return tuple(rows)
        names = tuple(rows)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(f"{names_file}: class name {repeated[0]!r} appears more than once")
    elif own_names is not None and len(set(own_names)) == num_classes:
        names = tuple(own_names)
    elif num_classes == len(COCO_NAMES):
        names = COCO_NAMES
    else:
        names = tuple(f"class_{index}" for index in range(1, num_classes + 1))
    ids = COCO_IDS if names == COCO_NAMES else range(1, num_classes + 1)
    return tuple(Category(id_, name) for id_, name in zip(ids, names, strict=True))


def _read_names(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        rows = json.loads(text)
        if all(isinstance(row, str) for row in rows):
            return rows
        return [Category(int(row["id"]), str(row["name"])) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{path}: expected a JSON list of names, or of {{"id": 1, "name": "cat"}}: {error}') from error

"""What was found, cut out of its image: one picture of each object, in a folder for each class."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dh_keras.errors import visible
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import replaced_file
from dh_keras.inference.drawing import save_picture
from dh_keras.inference.prediction.sources import free_name
from dh_keras.run.classes import Category

CROPS_DIR = "crops"


def cut_out(image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """Cut boxes out of an image.

    Args:
        image: uint8 [H, W, 3].
        boxes: float [D, 4], (y1, x1, y2, x2) in pixels of `image`.

    Returns:
        D views uint8 [h, w, 3] of every pixel that a box touches, at least one.
    """
    height, width = image.shape[:2]
    crops = []
    for y1, x1, y2, x2 in boxes.tolist():
        top, left = min(max(0, math.floor(y1)), height - 1), min(max(0, math.floor(x1)), width - 1)
        bottom, right = max(top + 1, math.ceil(y2)), max(left + 1, math.ceil(x2))
        crops.append(image[top:bottom, left:right])
    return crops


def write_crops(image: np.ndarray, found: ImageDetections, output: Path, start: str) -> None:
    """Write each object as PNG into a folder that is named after its class.

    Args:
        image: uint8 [H, W, 3], RGB.
        found: in pixels of `image`.
        output: the folder of the prediction.
        start: of the names of the files; a number follows, from 1.
    """
    folders = class_folders(found.known)
    for number, (crop, index) in enumerate(zip(cut_out(image, found.boxes), found.classes.tolist(), strict=True), 1):
        with replaced_file(output / CROPS_DIR / folders[index] / f"{start}{number}.png") as partial:
            save_picture(crop, partial)


def class_folders(known: Sequence[Category]) -> list[str]:
    r"""Names of classes as file systems take them, no two alike.

    Example:
        >>> class_folders([Category(1, "car"), Category(2, "Car"), Category(3, "and/or"), Category(4, "..")])
        ['car', 'Car-2', 'and_or', '_..']
    """
    taken: set[str] = set()
    names = [visible(one.name).replace("/", "_").replace(os.sep, "_") for one in known]
    return [free_name(f"_{name}" if not name or name.startswith(".") else name, taken) for name in names]

"""The embedded dataset: pictures of drawn shapes in COCO format, so that everything runs without a download."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dh_keras.data.shape_drawing import CATEGORIES, SPLITS, DrawnShape, draw_image
from dh_keras.errors import DataError, WriteError
from dh_keras.files import is_new_folder, new_folder, write_bytes, write_json

# Raise this when the same seed would give other images: a folder of another version is then not reused.
GENERATOR_VERSION = 1

_SETTINGS_FILE = "shapes.json"
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ShapesPaths:
    """Where `write_shapes` put the two splits; the names are those of the config's `data` keys.

    Args:
        train_annotations: COCO JSON of the training split.
        train_images: folder of its images.
        val_annotations: COCO JSON of the validation split.
        val_images: folder of its images.
    """

    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path


def write_shapes(directory: str | Path, *, train_images: int, val_images: int, seed: int) -> ShapesPaths:
    """Write the dataset into a folder, or reuse the one that is there.

    The folder appears complete or not at all: images are drawn into a hidden folder beside it, which is then renamed.

    Args:
        directory: the dataset's folder; its parents are created.
        train_images: number of training images, at least 1.
        val_images: number of validation images, at least 1.
        seed: at least 0; the same seed gives the same bytes.

    Returns:
        The paths of annotations and images of both splits.

    Raises:
        DataError: when the folder holds a dataset with other settings or something else.
        WriteError: when it cannot be written.
        ValueError: when a number is out of range.

    Example:
        >>> paths = write_shapes("data/shapes", train_images=400, val_images=100, seed=1)  # doctest: +SKIP
    """
    for name, value, least in (("train_images", train_images, 1), ("val_images", val_images, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value}")
    directory = Path(directory)
    settings = {"version": GENERATOR_VERSION, "train_images": train_images, "val_images": val_images, "seed": seed}
    if not _holds_dataset(directory, settings):
        _write(directory, settings)
    annotations = directory / "annotations"
    return ShapesPaths(
        train_annotations=annotations / "instances_train.json",
        train_images=directory / "train",
        val_annotations=annotations / "instances_val.json",
        val_images=directory / "val",
    )


_REMEDY = "set data.shapes.directory to another folder"


def _holds_dataset(directory: Path, settings: dict) -> bool:
    """Whether the folder already holds exactly this dataset; refuse a folder that holds anything else."""
    if is_new_folder(directory):
        return False
    if not directory.is_dir():
        raise DataError(f"shapes folder {directory}: expected a folder, found a file; {_REMEDY}")
    names = sorted(path.name for path in directory.iterdir())
    if _SETTINGS_FILE not in names:
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise DataError(f"shapes folder {directory}: holds other files ({found}), nothing was written; {_REMEDY}")
    try:
        existing = dict(json.loads((directory / _SETTINGS_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"shapes folder {directory}: cannot read {_SETTINGS_FILE} ({error}); {_REMEDY}") from error
    different = [
        f"{key} {existing.get(key)} (wanted {value})" for key, value in settings.items() if existing.get(key) != value
    ]
    if different:
        raise DataError(f"shapes folder {directory}: holds a dataset with {', '.join(different)}; {_REMEDY}")
    needed = [f"annotations/instances_{split}.json" for split in SPLITS] + list(SPLITS)
    missing = [name for name in needed if not (directory / name).exists()]
    if missing:
        raise DataError(f"shapes folder {directory}: {', '.join(missing)} is missing; delete the folder to redraw it")
    return True


def _write(directory: Path, settings: dict) -> None:
    try:
        with new_folder(directory) as folder:
            for split in SPLITS:
                _write_split(folder, split, settings[f"{split}_images"], settings["seed"])
            write_json(folder / _SETTINGS_FILE, settings)
    except WriteError as error:
        raise WriteError(f"shapes folder {error}; {_REMEDY}") from error
    except DataError:
        # Another process of the same job was faster; its dataset is as good as this one.
        if not _holds_dataset(directory, settings):
            raise


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    def write_image(index: int) -> tuple[dict, list[dict]]:
        image = draw_image(seed=seed, split=split, index=index)
        name = f"{index + 1:06d}.jpg"
        encoded = io.BytesIO()  # as Pillow does not notice that a full disk takes only a part of a JPEG file
        Image.fromarray(image.pixels).save(encoded, "JPEG", quality=_JPEG_QUALITY)
        write_bytes(root / split / name, encoded.getvalue())
        height, width = image.pixels.shape[:2]
        entry = {"id": index + 1, "file_name": name, "width": width, "height": height}
        return entry, [_coco_annotation(shape, image_id=index + 1) for shape in image.shapes]

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        written = list(pool.map(write_image, range(count)))
    annotations = [annotation for _, of_image in written for annotation in of_image]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    tree = {
        "info": {"description": f"generated shapes, {split} split, seed {seed}, generator version {GENERATOR_VERSION}"},
        "categories": [{"id": key, "name": name, "supercategory": "shape"} for key, name in CATEGORIES.items()],
        "images": [entry for entry, _ in written],
        "annotations": annotations,
    }
    write_json(root / "annotations" / f"instances_{split}.json", tree, indent=None)


def _coco_annotation(shape: DrawnShape, *, image_id: int) -> dict:
    y1, x1, y2, x2 = shape.box
    return {
        "id": 0,
        "image_id": image_id,
        "category_id": shape.category_id,
        "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(shape.area, 2),
        "iscrowd": int(shape.crowd),
    }

"""Pictures for the report: findings with their boxes drawn, contact sheets, and batches as training gets them."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dh_keras.config.schema import Config
from dh_keras.data.formats.findings import Picture
from dh_keras.inference.drawing import class_colors, draw_boxes
from dh_keras.reports.data_doctor.examined import Examined
from dh_keras.reports.data_doctor.file_scan import read_upright
from dh_keras.run.classes import class_labels

_SIDE = 560  # most pixels of a picture in the report
_AROUND = 5  # a box is shown in a part of the image this many times its size ...
_SMALLEST_CLOSE_UP = 96  # ... and at least this many pixels wide
_SHEET_IMAGES = 12


def draw_picture(picture: Picture, class_names: Sequence[str]) -> str:
    """Draw the boxes of a finding; of small ones, only they and what is around them are shown.

    Returns:
        A JPEG as a data address.
    """
    pixels = read_upright(picture.path, picture.orientation)
    boxes = np.array(picture.boxes, np.float64).reshape(-1, 4)
    size = np.array(pixels.shape[:2])
    if len(boxes):
        start, end = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        half = max(*(end - start), _SMALLEST_CLOSE_UP / _AROUND) * _AROUND / 2
        if half * 2 < size.max():
            # Near the border the part is moved inwards, not cut.
            low = np.clip((start + end) / 2 - half, 0, np.maximum(size - 2 * half, 0))
            (y1, x1), (y2, x2) = low.astype(int), np.minimum(np.ceil(low + 2 * half), size).astype(int)
            pixels, boxes = pixels[y1:y2, x1:x2], boxes - [y1, x1, y1, x1]
    return draw(pixels, boxes, picture.labels, class_names)


def contact_sheet(examined: Examined, class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Draw images from all over the split with all their boxes; returns (caption, data address) of each."""
    split = examined.split
    good = np.flatnonzero(examined.good)
    places = np.linspace(0, len(good) - 1, min(_SHEET_IMAGES, len(good))).astype(int)
    shown = []
    for index in good[places]:
        rows = np.flatnonzero(examined.usable & (split.box_images == index))
        pixels = read_upright(split.images[index].path, examined.facts[index].orientation)
        labels = [examined.class_of(row) for row in rows]
        shown.append((split.images[index].file_name, draw(pixels, examined.boxes[rows], labels, class_names)))
    return shown


def augmented_batches(
    annotations: str | Path, images: str | Path, config: Config, *, batches: int
) -> list[tuple[str, str]]:
    """Draw the first batches of a training, after augmentation; only this needs TensorFlow.

    Args:
        annotations: COCO JSON of the training split.
        images: folder of its images.
        config: augmentation, sizes, batch size and seed.
        batches: how many.

    Returns:
        (caption, picture as a data address) of every image, without its padding.

    Raises:
        DataError: as `load_coco`.
    """
    from dh_keras.data.balance import epoch_images
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.pipeline import Plan, train_dataset

    dataset, seed = load_coco(annotations, images), config.train.seed
    shown = epoch_images(dataset, config.data)
    plan = np.concatenate([*Plan(*shown, batch_size=config.images_per_step, seed=seed, steps=batches).epochs()])
    pictures = []
    for step, batch in enumerate(train_dataset(dataset, config.data, plan=plan, seed=seed)):
        batch = {name: values.numpy() for name, values in batch.items()}
        for position, (height, width) in enumerate(batch["image_sizes"]):
            valid = batch["gt_valid"][position]
            labels = [dataset.class_names[index] for index in batch["gt_classes"][position][valid]]
            pixels = batch["images"][position, :height, :width]
            name = Path(dataset.paths[plan[step, position]]).name
            picture = draw(pixels, batch["gt_boxes"][position][valid], labels, dataset.class_names)
            pictures.append((f"batch {step + 1}: {name}", picture))
    return pictures


def data_address(image: bytes, kind: str) -> str:
    """Return image bytes as an address that can stand in HTML."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def draw(pixels: np.ndarray, boxes: np.ndarray, labels: Sequence[str], class_names: Sequence[str]) -> str:
    """Draw boxes with their labels, in the colours of their classes, and return the picture as a data address."""
    palette = dict(zip(class_names, class_colors(len(class_names)), strict=True))
    colors = [palette.get(label, (40, 40, 40)) for label in labels]
    short = dict(zip(class_names, class_labels(class_names), strict=True))
    shown = [short.get(label, label) for label in labels]
    drawn = Image.fromarray(draw_boxes(pixels, boxes, shown, colors=colors))
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=82)
    return data_address(buffer.getvalue(), "jpeg")

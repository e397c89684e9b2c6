"""A pipeline of Albumentations that was saved in a file, as one more operation on a training image.

Albumentations keeps its random numbers inside a pipeline, so each thread has its own, whose generators are made anew
for every image from its key.
"""

import os
import random
import re
import threading
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import yaml

from dh_keras.data import transforms
from dh_keras.data.draws import Draws
from dh_keras.errors import ConfigError, DataError, one_line, pip_install, reason_of
from dh_keras.paths import to_path

_SEEDS = 2**31 - 1
# What a pipeline with boxes may say about those that are hardly left.
_LIMITS = ("min_area", "min_visibility", "min_width", "min_height", "max_accept_ratio")
_FAULT = re.compile(r"ValueError: (data\.augment_file .*)")


def read_augment_file(path: str) -> str:
    """The text of a file.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        return to_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(f"data.augment_file {path}: cannot be read: {reason_of(error)}") from error


class Pipeline(threading.local):
    """Callable with an image and its boxes; every thread makes its own when it calls it first.

    Args:
        path: how messages call it.
        tree: what `albumentations.save` wrote.
    """

    def __init__(self, path: str, tree: dict[str, Any]):
        import albumentations

        self.path = path
        inner = {name: value for name, value in tree["transform"].items() if not name.endswith("_params")}
        theirs = tree["transform"].get("bbox_params") or {}
        boxes = albumentations.BboxParams(
            "pascal_voc",
            label_fields=["rows"],
            clip=True,
            filter_invalid_bboxes=True,
            **{name: theirs[name] for name in _LIMITS if theirs.get(name) is not None},
        )
        self.compose = albumentations.Compose(
            [albumentations.from_dict({**tree, "transform": inner})], bbox_params=boxes
        )

    def __call__(self, image: np.ndarray, boxes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Change an image and its boxes.

        Args:
            image: uint8[H, W, 3].
            boxes: float32[n, 4], y1 x1 y2 x2 in pixels.
            seed: the same one gives the same result.

        Returns:
            The image, uint8 of any size, and float32[n, 4] in its pixels; boxes that left it are zero.

        Raises:
            ValueError: when the pipeline fails, saying so in one line.
        """
        # Generators that all operations share: with `set_random_seed` each would draw the same numbers.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(int(seed)))
        rows = np.arange(len(boxes))  # of those that are empty already, none comes back
        try:
            found = self.compose(image=image, bboxes=boxes[:, [1, 0, 3, 2]], rows=rows)
            changed, left = found["image"], np.asarray(found["bboxes"], np.float32).reshape(-1, 4)
            if changed.dtype != np.uint8 or changed.shape[2:] != (3,):
                raise ValueError(f"gives an image {changed.dtype}{list(changed.shape)}, expected uint8[H, W, 3]")
        except Exception as error:  # whatever an operation raises
            raise ValueError(f"data.augment_file {self.path}: {type(error).__name__}: {one_line(error)}") from error
        moved = np.zeros_like(boxes)
        moved[np.asarray(found["rows"], np.int64)] = left[:, [1, 0, 3, 2]]
        return np.ascontiguousarray(changed), moved


def load_pipeline(path: str) -> Pipeline:
    """Read what `albumentations.save` wrote, as YAML or JSON.

    Raises:
        ConfigError: when Albumentations is not installed.
        DataError: when the file cannot be read, or is something else.
    """
    text = read_augment_file(path)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version otherwise
    try:
        import albumentations  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"key data.augment_file: needs Albumentations; install it with {pip_install('augment')}"
        ) from error
    # Operations on colors leave boxes where they are.
    warnings.filterwarnings("ignore", message="Got processor for bboxes, but no transform to process it")
    try:
        return Pipeline(path, yaml.safe_load(text))  # JSON is YAML
    except Exception as error:  # YAML's, a missing key, an operation that does not exist or refuses its arguments
        raise DataError(
            f"data.augment_file {path}: is not what albumentations.save writes: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def apply_pipeline(
    pipeline: Pipeline, image: tf.Tensor, boxes: tf.Tensor, canvas: tf.Tensor, draws: Draws
) -> tuple[tf.Tensor, tf.Tensor]:
    """Run a pipeline in a graph; what it makes larger than the canvas int32[2] (height, width) is shrunk to fit."""
    seed = draws.integer(_SEEDS)
    image, boxes = tf.numpy_function(pipeline, [image, boxes, seed], [tf.uint8, tf.float32], stateful=False)
    image, boxes = tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(boxes, [None, 4])
    size = tf.shape(image)[:2]
    scale = tf.reduce_min(tf.cast(canvas, tf.float64) / tf.cast(size, tf.float64))

    def shrink() -> tuple[tf.Tensor, tf.Tensor]:
        new_size = tf.cast(tf.floor(tf.cast(size, tf.float64) * scale), tf.int32)
        new_size = tf.clip_by_value(new_size, 1, canvas)
        return transforms.resize_image(image, new_size), transforms.resize_boxes(boxes, size, new_size)

    return tf.cond(scale < 1, shrink, lambda: (image, boxes))


def fault_of(error: tf.errors.OpError) -> str | None:
    """What a pipeline said in an error of a dataset, or None when it is about something else."""
    found = _FAULT.search(error.message)
    return found and found[1]

"""What people hand to `fit`, `evaluate` and `predict`, as the batches of `DoubleHeadRCNN`.

Letters: B batch, G padded ground truth, H W.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.modeling.constants import SIZE_DIVISOR
from dh_keras.modeling.ops.indexing import count_up

# Rows of arrays that are looked at before anything starts.
LOOKED_AT = 16
_PADDING_CLASS = -1


def image_batch(data: Any) -> dict[str, tf.Tensor]:
    """Images with their sizes.

    Args:
        data: images [B, H, W, 3] of numbers in 0..255; or a dict with them as "images" and, where some of the pixels
            are padding, "image_sizes"; or either of them in a tuple, followed by what is not wanted here.

    Returns:
        The dict with both. Where it has no sizes, images are padded to multiples of 32 at the bottom and right.

    Raises:
        DataError: for images of another shape, and of floats within 0..1. In a graph TensorFlow raises
            InvalidArgumentError for values.
    """
    x, _ = _unpack(data)
    batch = dict(x) if isinstance(x, Mapping) else {"images": x}
    if "images" not in batch:
        raise DataError(f"images: expected an array, or a dict with the key images, got the keys {', '.join(batch)}")
    images = batch["images"] = tf.convert_to_tensor(batch["images"])
    if images.shape.rank != 4 or images.shape[-1] not in (3, None):
        raise DataError(f"images: expected the shape [B, H, W, 3], got {images.shape}; pad images of several sizes")
    if images.dtype.is_floating:
        brightest = tf.reduce_max(images)
        _require(
            (brightest > 1) | (brightest <= 0),
            "images: expected numbers in 0..255, got 0..1; multiply them by 255, the model normalises them itself",
        )
    if "image_sizes" not in batch:
        shape = tf.shape(images)
        batch["image_sizes"] = tf.tile(shape[None, 1:3], [shape[0], 1])
        margins = [[0, -shape[axis] % SIZE_DIVISOR] for axis in (1, 2)]
        batch["images"] = tf.pad(images, [[0, 0], *margins, [0, 0]])
    return batch


def training_batch(data: Any, *, num_classes: int) -> dict[str, tf.Tensor]:
    """Images with their ground truth.

    Args:
        data: a whole batch, see `DoubleHeadRCNN`, which is returned as it is; one without image_sizes, image_ids or
            gt_valid; or (x, y), x as `image_batch` takes it, y a dict of boxes [B, G, 4] in pixels of the images and
            classes [B, G], ragged or padded. Rows with a class of -1, or with a box that has no area, are padding.
        num_classes: K.

    Returns:
        A whole batch. Without image_ids, an image is known by its place in the batch.

    Raises:
        DataError: as `image_batch`; for missing keys, other shapes, boxes within 0..1, and classes that do not exist.
    """
    x, y = _unpack(data)
    if y is None and isinstance(x, Mapping) and {"image_sizes", "image_ids", "gt_valid"} <= x.keys():
        return x
    batch = image_batch(x)
    if y is None:
        names, truth = ("gt_boxes", "gt_classes"), batch
    else:
        names, truth = ("boxes", "classes"), y
    if not isinstance(truth, Mapping) or not truth.keys() >= {*names}:
        got = f"the keys {', '.join(truth)}" if isinstance(truth, Mapping) else type(truth).__name__
        raise DataError(f"y: expected a dict with boxes and classes, or gt_boxes and gt_classes in x, got {got}")
    if y is not None or "gt_valid" not in batch:
        batch |= _ground_truth(*(truth[name] for name in names), num_classes=num_classes)
    if "image_ids" not in batch:
        batch["image_ids"] = count_up(tf.shape(batch["images"])[0])
    return batch


def _ground_truth(boxes: Any, classes: Any, *, num_classes: int) -> dict[str, tf.Tensor]:
    """Ground truth with its mask; padding is zero."""
    if isinstance(boxes, tf.RaggedTensor):
        boxes = boxes.to_tensor(shape=[None, None, 4])
    if isinstance(classes, tf.RaggedTensor):
        classes = classes.to_tensor(_PADDING_CLASS)
    boxes, classes = tf.cast(boxes, tf.float32), tf.cast(classes, tf.int32)
    if boxes.shape.rank != 3 or boxes.shape[-1] not in (4, None) or classes.shape.rank != 2:
        raise DataError(
            f"y: expected boxes [B, G, 4] and classes [B, G], got the shapes {boxes.shape} and {classes.shape}"
        )
    valid = (classes >= 0) & tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    boxes, classes = tf.where(valid[..., None], boxes, 0.0), tf.where(valid, classes, 0)
    _require(
        (tf.reduce_max(boxes) > 1.0) | ~tf.reduce_any(valid),
        "boxes: expected [y1, x1, y2, x2] in pixels of the images, got 0..1; multiply them by the height and width",
    )
    _require(
        tf.reduce_all(classes < num_classes),
        f"classes: expected 0..{num_classes - 1}, or -1 for padding, got larger ones; build the model for more classes",
    )
    return {"gt_boxes": boxes, "gt_classes": classes, "gt_valid": valid}


def as_arrays(x: Any, y: Any) -> tuple[Any, Any]:
    """What Keras can take rows of: boxes and classes that are lists, one entry for each image, become padded arrays."""
    if isinstance(y, Mapping) and {"boxes", "classes"} <= y.keys() and not hasattr(y["boxes"], "shape"):
        rows = [np.reshape(np.asarray(boxes, np.float32), [-1, 4]) for boxes in y["boxes"]]
        most = max(map(len, rows), default=0)
        boxes = np.zeros([len(rows), most, 4], np.float32)
        classes = np.full([len(rows), most], _PADDING_CLASS, np.int32)
        for image, (own, labels) in enumerate(zip(rows, y["classes"], strict=True)):
            boxes[image, : len(own)], classes[image, : len(own)] = own, labels
        y = {**y, "boxes": boxes, "classes": classes}
    return x, y


def first_rows(*data: Any) -> tuple[Any, ...] | None:
    """Some rows of arrays; None for what has no rows, such as a dataset, which is only read when it is its time."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    if not leaves or not all(hasattr(leaf, "shape") and hasattr(leaf, "__getitem__") for leaf in leaves):
        return None
    return keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[:LOOKED_AT], data)


def _unpack(data: Any) -> tuple[Any, Any]:
    """x and y of what Keras hands to a step, and of a tuple of both that was given as x."""
    x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
    if y is None and isinstance(x, (tuple, list)) and len(x) == 2:
        x, y = x
    return x, y


def _require(condition: tf.Tensor, message: str) -> None:
    if not tf.executing_eagerly():
        tf.debugging.Assert(condition, [message])
    elif not condition:
        raise DataError(message)

"""A training image made of four, after YOLOv4: many objects at once, smaller ones, and cut ones.

Four quarters meet in a point that is drawn; each shows a window of an image that was scaled at random. Letters: n boxes
of an image, N of a mosaic.
"""

from collections.abc import Callable
from dataclasses import replace

import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data.augment import random_crop, random_flip, random_resize
from dh_keras.data.draws import Draws
from dh_keras.data.policies import GREY

Example = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
# Where the quarters meet, as a share of each side; and how much smaller an image may be than as a whole picture.
_MEETING_POINT = (0.25, 0.75)
_SCALES = [0.5, 1.0]
# A box that shows less of itself in its window is no target.
_LEAST_SHARE = 0.25


def make_mosaic(
    read: Callable[[tf.Tensor], Example],
    first: tf.Tensor,
    others: tf.Tensor,
    canvas: tf.Tensor,
    draws: Draws,
    data: DataConfig,
) -> Example:
    """Put an image and three that are drawn together.

    Args:
        read: from an image index to uint8[H, W, 3], boxes float32[n, 4] y1 x1 y2 x2 in its pixels, classes int32[n].
        first: int32[], index of an image that is shown in any case.
        others: int32[M], those to draw from.
        canvas: int32[2], (height, width) of the mosaic.
        draws: of everything.
        data: as for `place`; without a scale_jitter images are scaled by 0.5 to 1.

    Returns:
        uint8[canvas, 3], float32[N, 4] in its pixels, int32[N]; boxes that are not seen are empty. Gaps are grey.
    """
    data = replace(data, scale_jitter=data.scale_jitter or _SCALES)
    share = tf.stack([draws.uniform(*_MEETING_POINT), draws.uniform(*_MEETING_POINT)])
    middle = tf.cast(tf.round(tf.cast(canvas, tf.float32) * share), tf.int32)
    rows, all_boxes, all_classes = [], [], []
    for is_below in (False, True):
        row = []
        for is_right in (False, True):
            index = others[draws.integer(tf.size(others))] if all_boxes else first
            image, boxes, classes = read(index)
            side = tf.stack([is_below, is_right])
            window = tf.where(side, canvas - middle, middle)
            image, boxes = _show(image, boxes, window, draws, data)
            # What is smaller than its quarter lies where the four meet.
            gap = window - tf.shape(image)[:2]
            before = tf.where(side, 0, gap)
            padding = tf.pad(tf.stack([before, gap - before], axis=1), [[0, 1], [0, 0]])
            row.append(tf.pad(image, padding, constant_values=tf.constant(GREY, tf.uint8)))
            place = before + tf.where(side, middle, 0)
            all_boxes.append(boxes + tf.tile(tf.cast(place, tf.float32), [2]))
            all_classes.append(classes)
        rows.append(tf.concat(row, axis=1))
    return tf.concat(rows, axis=0), tf.concat(all_boxes, axis=0), tf.concat(all_classes, axis=0)


def _show(
    image: tf.Tensor, boxes: tf.Tensor, window: tf.Tensor, draws: Draws, data: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale an image, cut out a window, flip it."""
    image, boxes = random_resize(image, boxes, draws, data)
    whole = _areas(boxes)
    image, boxes = random_crop(image, boxes, window, draws)
    boxes = tf.where((_areas(boxes) >= _LEAST_SHARE * whole)[:, None], boxes, 0.0)
    if data.augmentation == "none":
        return image, boxes
    return random_flip(image, boxes, data.flip_probability, draws.key())


def _areas(boxes: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(boxes[:, 2:] - boxes[:, :2], axis=1)

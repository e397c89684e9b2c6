"""Anchor boxes of the region proposal network (FPN paper, section 4.1).

Order within a level: rows, then columns, then ratios, the order in which the RPN head's output is flattened.
"""

from collections.abc import Sequence

import tensorflow as tf

from dh_keras.modeling.constants import LEVEL_STRIDES, SIZE_DIVISOR
from dh_keras.modeling.ops.boxes import corners
from dh_keras.modeling.ops.cell_anchors import cell_anchors
from dh_keras.modeling.ops.indexing import count_up


def grid_anchors(
    grid_size: tf.Tensor, *, size: float, ratios: Sequence[float], stride: int, geometry: str = "continuous"
) -> tf.Tensor:
    """Anchors of one pyramid level.

    Args:
        grid_size: int32 [2], rows and columns of the feature map.
        size, ratios, stride, geometry: see `cell_anchors`.

    Returns:
        float32 [rows * columns * A, 4], pixels of the resized image; anchors may cross its border.
    """
    base = tf.constant(cell_anchors(size, ratios, stride, geometry=geometry))
    rows, columns = (count_up(number, tf.float32) for number in tf.unstack(grid_size))
    y = tf.reshape(rows, [-1, 1, 1, 1]) * [stride, 0.0, stride, 0.0]
    x = tf.reshape(columns, [-1, 1, 1]) * [0.0, stride, 0.0, stride]
    return tf.reshape(y + x + base, [-1, 4])


def anchors_inside(anchors: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
    """Which anchors lie wholly in the image.

    Args:
        anchors: float32 [N, 4], pixels.
        image_sizes: [B, 2] (height, width) of the unpadded images.

    Returns:
        bool [B, N].
    """
    sizes = tf.expand_dims(tf.cast(image_sizes, anchors.dtype), 1)
    start, end = corners(anchors)
    return tf.reduce_all(start >= 0.0, axis=-1) & tf.reduce_all(end <= sizes, axis=-1)


def anchors_on_canvas(anchors: dict[str, tf.Tensor], image_sizes: tf.Tensor) -> dict[str, tf.Tensor]:
    """Which anchors an image of a batch would have if it were alone, with the least padding.

    Args:
        anchors: by level, float32 [N, 4], pixels.
        image_sizes: int32 [B, 2] (height, width) of the unpadded images.

    Returns:
        By level, bool [B, N].
    """
    canvases = tf.expand_dims(tf.math.ceil(tf.cast(image_sizes, tf.float32) / SIZE_DIVISOR), 1) * SIZE_DIVISOR
    on_canvas = {}
    for level, boxes in anchors.items():
        stride = LEVEL_STRIDES[level]
        start, end = corners(boxes)
        # Centres are at the start of a cell or in its middle; a little more keeps rounding from moving one out of it.
        cells = tf.floor((start + end) / (2.0 * stride) + 0.01)
        on_canvas[level] = tf.reduce_all(cells * stride < canvases, axis=-1)
    return on_canvas

"""Anchor boxes of the region proposal network (FPN paper, section 4.1).

Order within a level: rows, then columns, then ratios, the order in which the RPN head's output is flattened.
"""

from collections.abc import Sequence

import tensorflow as tf

from dh_keras.modeling.ops.cell_anchors import cell_anchors


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
    rows = tf.cast(tf.range(grid_size[0]) * stride, tf.float32)
    columns = tf.cast(tf.range(grid_size[1]) * stride, tf.float32)
    y, x = tf.meshgrid(rows, columns, indexing="ij")
    shifts = tf.stack([y, x, y, x], axis=-1)
    return tf.reshape(shifts[:, :, None, :] + base, [-1, 4])


def anchors_inside(anchors: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
    """Which anchors lie wholly in the image.

    Args:
        anchors: float32 [N, 4], pixels.
        image_sizes: [B, 2] (height, width) of the unpadded images.

    Returns:
        bool [B, N].
    """
    sizes = tf.cast(image_sizes, anchors.dtype)[:, None, :]
    starts_inside = tf.reduce_all(anchors[:, :2] >= 0.0, axis=-1)
    return starts_inside[None, :] & tf.reduce_all(anchors[None, :, 2:] <= sizes, axis=-1)

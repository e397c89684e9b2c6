"""Anchor boxes of the region proposal network (FPN paper, section 4.1).

Order within a level: rows, then columns, then ratios, the order in which the RPN head's output is flattened.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(size: float, ratios: Sequence[float], stride: int, *, geometry: str) -> np.ndarray:
    """Anchors of the grid cell at row 0, column 0.

    Args:
        size: square root of the anchor area, pixels.
        ratios: height / width.
        stride: pixels between neighbouring cells.
        geometry: "continuous" centres the anchors on (0, 0); "legacy" rounds heights and widths to whole pixels and
            centres them on the cell, as the authors' release does (inclusive boxes, here with y2 and x2 one larger).

    Returns:
        float32 [A, 4], pixels, in the order of ratios.
    """
    ratios = np.asarray(ratios, np.float64)
    if geometry == "legacy":
        widths = np.round(np.sqrt(stride * stride / ratios))
        heights = np.round(widths * ratios)
        widths, heights, centre = widths * size / stride, heights * size / stride, stride / 2.0
    else:
        widths, heights, centre = size / np.sqrt(ratios), size * np.sqrt(ratios), 0.0
    half = np.stack([heights, widths], axis=1) / 2.0
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


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

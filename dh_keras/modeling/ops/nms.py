"""Greedy non-maximum suppression with outputs of fixed size."""

from collections.abc import Sequence

import tensorflow as tf

from dh_keras.modeling.ops.indexing import count_up

# Boxes that `move_apart` puts into one quadrant have less IoU than this.
NO_OVERLAP = 1e-12
# Every four groups that are moved apart are this much larger than the four before.
_ENLARGEMENT = 2.0**45


def nms(
    boxes: tf.Tensor, scores: tf.Tensor, *, max_output: int | tf.Tensor, iou_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Keep the best box, drop those that overlap it by more than the threshold, and so on.

    Args:
        boxes: float32 [N, 4], pixels.
        scores: float32 [N]; -inf marks candidates that must never be kept.
        max_output: number of rows of the result.
        iou_threshold: boxes with a larger IoU than this with a kept one are dropped.

    Returns:
        indices int32 [max_output] into N, best score first, and valid bool [max_output]; indices of invalid rows are 0.
    """
    # On a GPU the kernel cannot take 0 boxes: one that is never kept stands in.
    missing = tf.maximum(1 - tf.shape(scores)[0], 0)
    boxes = tf.pad(boxes, [[0, missing], [0, 0]])
    scores = tf.pad(scores, [[0, missing]], constant_values=float("-inf"))
    # V4 has CPU and GPU kernels and pads its output; its siblings lack one or the other.
    indices, count = tf.raw_ops.NonMaxSuppressionV4(
        boxes=boxes,
        scores=scores,
        max_output_size=max_output,
        iou_threshold=iou_threshold,
        score_threshold=float("-inf"),
        pad_to_max_output_size=True,
    )
    # A GPU's kernel takes a threshold of -inf for none, and keeps what has that score, after all else.
    counted = count_up(max_output) < tf.cast(count, tf.int64)
    valid = counted & (tf.gather(scores, indices) > float("-inf"))
    return tf.where(valid, indices, 0), valid


def class_aware_nms(
    boxes: tf.Tensor, scores: tf.Tensor, groups: tf.Tensor, *, max_output: int | tf.Tensor, iou_threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """`nms` in which only boxes of the same group suppress each other.

    Groups are moved apart by more than the extent of all boxes, so that one pass serves them all. They are laid out in
    a square, because a row of a thousand classes would reach coordinates where float32 steps are a quarter pixel.

    Args:
        boxes: float32 [N, 4], pixels.
        scores: float32 [N].
        groups: integers [N], class (or pyramid level) of each box, 0 or more.
        max_output, iou_threshold: see `nms`.

    Returns:
        See `nms`.
    """
    # reduce_max of nothing is -inf; a leading zero keeps the offset finite for N = 0.
    extent = tf.reduce_max(tf.concat([[0.0], tf.reshape(tf.abs(boxes), [-1])], axis=0)) + 1.0
    groups = tf.cast(groups, tf.int64)
    num_groups = tf.reduce_max(tf.concat([tf.zeros([1], tf.int64), groups], axis=0)) + 1
    columns = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(num_groups, tf.float32))), tf.int64)
    places = tf.stack([groups // columns, groups % columns] * 2, axis=1)
    return nms(
        boxes + tf.cast(places, boxes.dtype) * (2.0 * extent),
        scores,
        max_output=max_output,
        iou_threshold=iou_threshold,
    )


def move_apart(groups: Sequence[tf.Tensor]) -> tf.Tensor:
    """Place a few groups of boxes so that one `nms` of all keeps of each what `nms` of it alone keeps, to the last bit.

    Each of four groups is mirrored into a quadrant of its own. The next four are enlarged besides, so that the others
    are nothing beside them. Signs and powers of two change no digit of a coordinate, of an area or of an IoU, which
    adding an offset does; `class_aware_nms` adds one because it has more groups.

    Args:
        groups: at most 8, float32 [..., N, 4] each, pixels, no coordinate below 0 or above 2^17, areas 0 or above 1e-8.

    Returns:
        float32 [..., sum of N, 4].
    """
    moved = []
    for index, boxes in enumerate(groups):
        y1, x1, y2, x2 = tf.unstack(boxes * _ENLARGEMENT if index >= 4 else boxes, axis=-1)
        if index & 1:
            x1, x2 = -x2, -x1
        if index & 2:
            y1, y2 = -y2, -y1
        moved.append(tf.stack([y1, x1, y2, x2], axis=-1))
    return tf.concat(moved, axis=-2)

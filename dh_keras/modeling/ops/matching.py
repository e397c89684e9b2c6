"""Assignment of anchors and RoIs to ground-truth boxes (Faster R-CNN, section 3.1.2)."""

import tensorflow as tf

from dh_keras.modeling.constants import MATCH_BACKGROUND, MATCH_IGNORE
from dh_keras.modeling.ops.indexing import count_up


def match_boxes(
    iou: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    low_quality_iou: float | None = None,
    low_quality_own_box: bool = False,
) -> tf.Tensor:
    """Give every box the index of its ground-truth box, or say that it is background or ignored.

    Args:
        iou: float32 [..., N, G], overlap of N boxes with G ground-truth boxes.
        gt_valid: bool [..., G], False for padding.
        foreground_iou: a box whose best overlap reaches this is matched to that ground truth.
        background_iou: a box whose best overlap is below this is background; between the two it is ignored.
        low_quality_iou: when given, the best boxes of a ground truth (ties included) are matched too if their overlap
            is above 0 and reaches this; they keep the ground truth that overlaps *them* most.
        low_quality_own_box: they take the ground truth that they are the best of instead; the last one if several.

    Returns:
        int64 [..., N]: index into G, `MATCH_BACKGROUND` or `MATCH_IGNORE`. An image without ground truth is background.
    """
    # A padded column of -1 keeps reduce_max and argmax defined for G = 0 and for images without valid boxes.
    iou = tf.where(gt_valid[..., None, :], iou, -1.0)
    no_column = tf.fill(tf.concat([tf.shape(iou)[:-1], [1]], axis=0), -1.0)
    iou = tf.concat([iou, no_column], axis=-1)
    best_iou = tf.reduce_max(iou, axis=-1)
    best_gt = tf.argmax(iou, axis=-1)
    foreground = best_iou >= foreground_iou
    if low_quality_iou is not None:
        best_of_gt = tf.reduce_max(iou, axis=-2, keepdims=True)
        is_best = (iou == best_of_gt) & (iou > 0.0) & (iou >= low_quality_iou)
        is_best_of_any = tf.reduce_any(is_best, axis=-1)
        foreground |= is_best_of_any
        if low_quality_own_box:
            # As float32, which holds these numbers exactly in half the memory.
            own_gt = tf.reduce_max(tf.where(is_best, count_up(tf.shape(iou)[-1], tf.float32), -1.0), axis=-1)
            best_gt = tf.where(is_best_of_any, tf.cast(own_gt, tf.int64), best_gt)
    unmatched = tf.where(best_iou < background_iou, tf.constant(MATCH_BACKGROUND, tf.int64), MATCH_IGNORE)
    return tf.where(foreground, best_gt, unmatched)

"""From head outputs to detections: scores, per-class suppression, the best D (paper, section 4.3).

Letters: B batch, P proposals, R RoIs, K classes, D detections.
"""

from typing import NamedTuple

import tensorflow as tf

from dh_keras.modeling.constants import ROI_DELTA_WEIGHTS
from dh_keras.modeling.ops.boxes import clip_boxes, decode_boxes
from dh_keras.modeling.ops.indexing import count_up
from dh_keras.modeling.ops.nms import class_aware_nms


class Detections(NamedTuple):
    """Detections of a batch, best first; padding rows are zero.

    Args:
        boxes: float32 [B, D, 4], pixels of the resized image.
        scores: float32 [B, D] in 0..1.
        classes: int32 [B, D] in 0..K-1.
        num_detections: int32 [B], rows that are not padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    num_detections: tf.Tensor


def class_probs(head_outputs: dict[str, tf.Tensor], score_from: str) -> tf.Tensor:
    """Foreground probabilities of the RoIs.

    Args:
        head_outputs: "fc_class_logits", "conv_class_logits" float32 [R, K + 1], those that exist.
        score_from: "fc", "conv", or "fused" for 1 - (1 - p_fc)(1 - p_conv).

    Returns:
        float32 [R, K].
    """
    if score_from == "fused":
        fc, conv = class_probs(head_outputs, "fc"), class_probs(head_outputs, "conv")
        return 1.0 - (1.0 - fc) * (1.0 - conv)
    return tf.nn.softmax(head_outputs[f"{score_from}_class_logits"])[:, :-1]


def surviving_rois(probs: tf.Tensor, *, score_threshold: float) -> tf.Tensor:
    """RoIs that can become a detection.

    Args:
        probs: float32 [R, K].
        score_threshold: a detection scores more than this.

    Returns:
        int64 [S], ascending indices of the RoIs that some class scores above the threshold.
    """
    return tf.where(tf.reduce_any(probs > score_threshold, axis=1))[:, 0]


def select_detections(
    rois: tf.Tensor,
    image_index: tf.Tensor,
    probs: tf.Tensor,
    box_deltas: tf.Tensor,
    image_sizes: tf.Tensor,
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    geometry: str,
) -> Detections:
    """Threshold, decode, clip and suppress per class, and keep the best of each image.

    Args:
        rois: float32 [R, 4], pixels of the resized image.
        image_index: integers [R].
        probs: float32 [R, K].
        box_deltas: float32 [R, K, 4]; the box of a class comes from that class's deltas.
        image_sizes: int32 [B, 2] (height, width) of the unpadded images.
        score_threshold: a detection scores more than this.
        nms_iou: suppression threshold within a class.
        max_detections: D.
        geometry: see `clip_boxes`.
    """
    candidates = tf.where(probs > score_threshold)
    roi, classes = candidates[:, 0], candidates[:, 1]
    scores = tf.gather_nd(probs, candidates)
    image = tf.gather(tf.cast(image_index, tf.int64), roi)
    boxes = decode_boxes(tf.gather_nd(box_deltas, candidates), tf.gather(rois, roi), weights=ROI_DELTA_WEIGHTS)
    boxes = clip_boxes(boxes[:, None, :], tf.gather(image_sizes, image), geometry=geometry)[:, 0, :]

    def select(index: tf.Tensor) -> Detections:
        mine = tf.where(image == index)[:, 0]
        own_boxes, own_scores, own_classes = (tf.gather(x, mine) for x in (boxes, scores, classes))
        kept, valid = class_aware_nms(
            own_boxes, own_scores, own_classes, max_output=max_detections, iou_threshold=nms_iou
        )

        def rows(x: tf.Tensor) -> tf.Tensor:
            # The kept ones, then zeros. One more row is there to be taken when there is no candidate.
            taken = tf.gather(tf.concat([x, tf.zeros([1, *x.shape[1:]], x.dtype)], axis=0), kept)
            return tf.where(valid if x.shape.rank == 1 else valid[:, None], taken, tf.zeros([], x.dtype))

        count = tf.reduce_sum(tf.cast(valid, tf.int64))
        return Detections(rows(own_boxes), rows(own_scores), rows(own_classes), count)

    found = tf.map_fn(
        select,
        count_up(tf.shape(image_sizes)[0]),
        fn_output_signature=Detections(
            tf.TensorSpec([max_detections, 4], tf.float32),
            tf.TensorSpec([max_detections], tf.float32),
            tf.TensorSpec([max_detections], tf.int64),
            tf.TensorSpec([], tf.int64),
        ),
    )
    return found._replace(
        classes=tf.cast(found.classes, tf.int32), num_detections=tf.cast(found.num_detections, tf.int32)
    )

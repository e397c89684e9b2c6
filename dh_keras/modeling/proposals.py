"""From RPN outputs to proposals (Faster R-CNN, section 3.3; FPN paper, section 4.1).

Letters: B batch, N anchors of a level, P proposals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from dh_keras.modeling.constants import LEVEL_STRIDES, RPN_DELTA_WEIGHTS
from dh_keras.modeling.ops.anchors import anchors_on_canvas, grid_anchors
from dh_keras.modeling.ops.boxes import clip_boxes, corners, decode_boxes
from dh_keras.modeling.ops.nms import NO_OVERLAP, move_apart, nms


class Proposals(NamedTuple):
    """Proposals of a batch, best first.

    Args:
        boxes: float32 [B, P, 4], pixels of the resized image, clipped to it.
        scores: float32 [B, P], objectness logits; -inf in padding.
        valid: bool [B, P], False in padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    valid: tf.Tensor

    def flat(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The valid ones, image after image: rois float32 [R, 4] and image_index int64 [R]."""
        places = tf.where(self.valid)
        return tf.gather_nd(self.boxes, places), places[:, 0]


def pyramid_anchors(
    pyramid: dict[str, tf.Tensor], *, sizes: Sequence[float], ratios: Sequence[float], geometry: str
) -> dict[str, tf.Tensor]:
    """Anchors float32 [N, 4] for each level of a pyramid of [B, H, W, C] maps; sizes are per level."""
    return {
        level: grid_anchors(
            tf.shape(features)[1:3], size=size, ratios=ratios, stride=LEVEL_STRIDES[level], geometry=geometry
        )
        for (level, features), size in zip(pyramid.items(), sizes, strict=True)
    }


def generate_proposals(
    objectness_logits: dict[str, tf.Tensor],
    anchor_deltas: dict[str, tf.Tensor],
    anchors: dict[str, tf.Tensor],
    image_sizes: tf.Tensor,
    *,
    pre_nms: int,
    post_nms: int,
    nms_iou: float,
    geometry: str,
) -> Proposals:
    """Decode the best anchors of every level, suppress within levels, keep the best over all levels.

    Args:
        objectness_logits: by level, float32 [B, N].
        anchor_deltas: by level, float32 [B, N, 4].
        anchors: by level, float32 [N, 4], pixels.
        image_sizes: int32 [B, 2] (height, width) of the unpadded images.
        pre_nms: anchors kept per level before suppression.
        post_nms: proposals kept per image.
        nms_iou: suppression threshold within a level.
        geometry: see `clip_boxes`.

    Returns:
        `Proposals` with P = min(post_nms, candidates). No gradient flows to the RPN.
    """
    on_canvas = anchors_on_canvas(anchors, image_sizes)
    counts, best = [], []  # best: scores, deltas and anchors of each level
    for level, logits in objectness_logits.items():
        logits = tf.where(on_canvas[level], tf.stop_gradient(logits), float("-inf"))
        counts.append(tf.minimum(pre_nms, tf.shape(anchors[level])[0]))
        scores, indices = tf.math.top_k(logits, k=counts[-1])
        deltas = tf.gather(tf.stop_gradient(anchor_deltas[level]), indices, batch_dims=1)
        best.append((scores, deltas, tf.gather(anchors[level], indices)))
    scores, deltas, sources = (tf.concat(of_levels, axis=1) for of_levels in zip(*best, strict=True))
    boxes = clip_boxes(decode_boxes(deltas, sources, weights=RPN_DELTA_WEIGHTS), image_sizes, geometry=geometry)
    # An anchor that was clipped away altogether has no area left and must never be kept.
    start, end = corners(boxes)
    scores = tf.where(tf.reduce_all(end > start, axis=-1), scores, float("-inf"))

    # Of what every level keeps, the best over all levels are those that one pass over all of them keeps first.
    limits = {"max_output": tf.minimum(post_nms, tf.shape(scores)[1]), "iou_threshold": max(nms_iou, NO_OVERLAP)}
    kept, valid = tf.map_fn(
        lambda image: nms(*image, **limits),
        (move_apart(tf.split(boxes, counts, axis=1)), scores),
        fn_output_signature=(tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.bool)),
    )
    boxes = tf.gather(boxes, kept, batch_dims=1)
    return Proposals(boxes, tf.where(valid, tf.gather(scores, kept, batch_dims=1), float("-inf")), valid)

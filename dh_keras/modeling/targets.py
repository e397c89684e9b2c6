"""What the network should have said: sampled anchors and RoIs with their classes and deltas.

Faster R-CNN, section 3.1.2 for the RPN; Fast R-CNN, section 2.3 for the RoIs.
Letters: B batch, N anchors, P proposals, G padded ground truth, S sampled, R = B * S RoIs without padding, K classes.
"""

from typing import NamedTuple

import tensorflow as tf

from dh_keras.modeling.constants import MATCH_BACKGROUND, ROI_DELTA_WEIGHTS, RPN_DELTA_WEIGHTS
from dh_keras.modeling.ops.anchors import anchors_inside
from dh_keras.modeling.ops.boxes import encode_boxes, pairwise_iou
from dh_keras.modeling.ops.machine import pad_rows
from dh_keras.modeling.ops.matching import match_boxes
from dh_keras.modeling.ops.sampling import sample_balanced


class AnchorTargets(NamedTuple):
    """Sampled anchors of a batch.

    Args:
        indices: int64 [B, S] into the anchors of all levels.
        valid: bool [B, S], False where there were fewer candidates.
        is_foreground: bool [B, S].
        box_targets: float32 [B, S, 4] deltas; zero where not foreground.
    """

    indices: tf.Tensor
    valid: tf.Tensor
    is_foreground: tf.Tensor
    box_targets: tf.Tensor


class RoITargets(NamedTuple):
    """Sampled RoIs of a batch, flat, without padding.

    Args:
        rois: float32 [R, 4], pixels of the resized image.
        image_index: int64 [R].
        class_targets: int64 [R], K for background.
        is_foreground: bool [R].
        box_targets: float32 [R, 4] deltas; zero where not foreground.
    """

    rois: tf.Tensor
    image_index: tf.Tensor
    class_targets: tf.Tensor
    is_foreground: tf.Tensor
    box_targets: tf.Tensor

    def foreground(self, *, rows: int | tf.Tensor | None = None) -> "RoITargets":
        """Only the foreground RoIs, in the same order; with rows, then blank RoIs up to that number, no foreground."""
        places = tf.where(self.is_foreground)[:, 0]
        chosen = [tf.gather(values, places) for values in self]
        return RoITargets(*(chosen if rows is None else (pad_rows(values, rows) for values in chosen)))


def anchor_targets(
    anchors: tf.Tensor,
    on_canvas: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    image_sizes: tf.Tensor,
    seeds: tf.Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality_iou: float,
    low_quality_own_box: bool,
    ignore_border: bool,
    batch_size: int,
    positive_fraction: float,
) -> AnchorTargets:
    """Match and sample anchors.

    Args:
        anchors: float32 [N, 4] of all levels, pixels.
        on_canvas: bool [B, N], which of them an image has, see `anchors_on_canvas`; the others do not count at all.
        gt_boxes: float32 [B, G, 4], pixels of the resized image.
        gt_valid: bool [B, G].
        image_sizes: int32 [B, 2] of the unpadded images.
        seeds: int64 [B, 2].
        positive_iou, negative_iou, low_quality_iou, low_quality_own_box, ignore_border, batch_size, positive_fraction:
            see `RPNConfig`.
    """
    candidate = on_canvas & anchors_inside(anchors, image_sizes) if ignore_border else on_canvas

    def match(image: tuple) -> tf.Tensor:
        boxes, valid, own = image
        # The best anchor of a box is looked for among all of the image's, ignored ones too, as the authors' release
        # does. What is not the image's has no area here and overlaps nothing.
        return match_boxes(
            pairwise_iou(tf.where(own[:, None], anchors, 0.0), boxes),
            valid,
            foreground_iou=positive_iou,
            background_iou=negative_iou,
            low_quality_iou=low_quality_iou,
            low_quality_own_box=low_quality_own_box,
        )

    # One image at a time: anchors times boxes is the largest array of a training step.
    matches = tf.map_fn(
        match,
        (gt_boxes, gt_valid, on_canvas),
        parallel_iterations=1,
        fn_output_signature=tf.TensorSpec([None], tf.int64),
    )
    indices, is_foreground, valid = sample_balanced(
        (matches >= 0) & candidate,
        (matches == MATCH_BACKGROUND) & candidate,
        seeds,
        size=batch_size,
        foreground_fraction=positive_fraction,
    )
    matched = tf.gather(matches, indices, batch_dims=1)
    box_targets = _matched_deltas(tf.gather(anchors, indices), gt_boxes, matched, is_foreground, RPN_DELTA_WEIGHTS)
    return AnchorTargets(indices, valid, is_foreground, box_targets)


def roi_targets(
    proposals: tf.Tensor,
    proposals_valid: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_classes: tf.Tensor,
    gt_valid: tf.Tensor,
    seeds: tf.Tensor,
    *,
    num_classes: int,
    foreground_iou: float,
    batch_size: int,
    foreground_fraction: float,
) -> RoITargets:
    """Let the ground truth join the proposals, match and sample them.

    Args:
        proposals: float32 [B, P, 4], pixels of the resized image.
        proposals_valid: bool [B, P].
        gt_boxes: float32 [B, G, 4], pixels of the resized image.
        gt_classes: int32 [B, G] in 0..K-1.
        gt_valid: bool [B, G].
        seeds: int64 [B, 2].
        num_classes: K.
        foreground_iou, batch_size, foreground_fraction: see `RoIConfig`.
    """
    candidates = tf.concat([gt_boxes, proposals], axis=1)
    candidates_valid = tf.concat([gt_valid, proposals_valid], axis=1)
    matches = match_boxes(
        pairwise_iou(candidates, gt_boxes), gt_valid, foreground_iou=foreground_iou, background_iou=foreground_iou
    )
    indices, is_foreground, valid = sample_balanced(
        (matches >= 0) & candidates_valid,
        (matches == MATCH_BACKGROUND) & candidates_valid,
        seeds,
        size=batch_size,
        foreground_fraction=foreground_fraction,
    )
    rois = tf.gather(candidates, indices, batch_dims=1)
    matched = tf.gather(matches, indices, batch_dims=1)
    box_targets = _matched_deltas(rois, gt_boxes, matched, is_foreground, ROI_DELTA_WEIGHTS)
    classes = tf.where(is_foreground, tf.cast(_gather_matched(gt_classes, matched), tf.int64), num_classes)
    places = tf.where(valid)
    class_targets = tf.gather_nd(classes, places)
    return RoITargets(
        rois=tf.gather_nd(rois, places),
        image_index=places[:, 0],
        class_targets=class_targets,
        is_foreground=class_targets < num_classes,
        box_targets=tf.gather_nd(box_targets, places),
    )


def _matched_deltas(
    boxes: tf.Tensor, gt_boxes: tf.Tensor, matched: tf.Tensor, is_foreground: tf.Tensor, weights: tuple[float, ...]
) -> tf.Tensor:
    """Deltas [B, S, 4] from boxes to their ground truth; unit boxes stand in where there is none, so nothing is NaN."""
    unit = tf.constant([0.0, 0.0, 1.0, 1.0])
    foreground = is_foreground[..., None]
    target_boxes = tf.where(foreground, _gather_matched(gt_boxes, matched), unit)
    return encode_boxes(target_boxes, tf.where(foreground, boxes, unit), weights=weights)


def _gather_matched(values: tf.Tensor, matched: tf.Tensor) -> tf.Tensor:
    """Rows [B, S, ...] of values [B, G, ...] at matched [B, S]; arbitrary where there is no match, also for G = 0."""
    one_more = tf.pad(values, [[0, 0], [0, 1]] + [[0, 0]] * (values.shape.rank - 2))
    return tf.gather(one_more, tf.maximum(matched, 0), batch_dims=1)

"""Box arithmetic: area, intersection over union, clipping, scaling, and the delta encoding (Fast R-CNN, appendix C).

Every box is float32 [y1, x1, y2, x2] in absolute pixels and continuous coordinates (height = y2 - y1). Legacy
inclusive boxes are the same numbers with y2 and x2 one larger, so only `clip_boxes` has to know the geometry.
"""

import math

import tensorflow as tf

# A predicted box grows at most this much in log size (Detectron's clamp), so exp never overflows.
MAX_LOG_SIZE = math.log(1000.0 / 16.0)


def box_area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas [...] in square pixels of boxes [..., 4]; an inverted box has area 0."""
    start, end = corners(boxes)
    height, width = tf.unstack(tf.maximum(end - start, 0.0), num=2, axis=-1)
    return height * width


def corners(boxes: tf.Tensor) -> list[tf.Tensor]:
    """(y1, x1) and (y2, x2) of boxes [..., 4], [..., 2] each. Two slices would be eight operations instead of two."""
    return tf.split(boxes, 2, axis=-1)


def _intersection_area(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """One axis at a time: the [N, G] arrays are the largest of the whole assignment."""
    y1, x1, y2, x2 = tf.unstack(tf.expand_dims(boxes, -2), num=4, axis=-1)
    other_y1, other_x1, other_y2, other_x2 = tf.unstack(tf.expand_dims(others, -3), num=4, axis=-1)
    height = tf.maximum(tf.minimum(y2, other_y2) - tf.maximum(y1, other_y1), 0.0)
    return height * tf.maximum(tf.minimum(x2, other_x2) - tf.maximum(x1, other_x1), 0.0)


def pairwise_iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box with every other.

    Args:
        boxes: float32 [..., N, 4], pixels.
        others: float32 [..., G, 4], pixels.

    Returns:
        float32 [..., N, G] in 0..1; 0 where both areas are 0.
    """
    intersection = _intersection_area(boxes, others)
    union = tf.expand_dims(box_area(boxes), -1) + tf.expand_dims(box_area(others), -2) - intersection
    return tf.math.divide_no_nan(intersection, union)


def clip_boxes(boxes: tf.Tensor, image_sizes: tf.Tensor, *, geometry: str = "continuous") -> tf.Tensor:
    """Move box corners into the image.

    Args:
        boxes: float32 [..., N, 4], pixels.
        image_sizes: [..., 2] (height, width) of the unpadded image, pixels.
        geometry: "continuous" clips to 0..size; "legacy" clips inclusive corners to 0..size-1, which in continuous
            numbers is 0..size-1 for the first corner and 1..size for the second.

    Returns:
        float32 [..., N, 4].
    """
    size = tf.expand_dims(tf.cast(image_sizes, boxes.dtype), -2)
    inset = 1.0 if geometry == "legacy" else 0.0
    low = tf.constant([0.0, 0.0, inset, inset], boxes.dtype)
    return tf.clip_by_value(boxes, low, tf.concat([size - inset, size], axis=-1))


def scale_boxes(boxes: tf.Tensor, factor: float) -> tf.Tensor:
    """Scale boxes [..., 4] by a factor about their centres; not clipped (the authors' RoI expansion)."""
    start, end = corners(boxes)
    centre = (start + end) / 2.0
    half = (end - start) / 2.0 * factor
    return tf.concat([centre - half, centre + half], axis=-1)


def encode_boxes(boxes: tf.Tensor, anchors: tf.Tensor, *, weights: tuple[float, ...]) -> tf.Tensor:
    """Deltas that turn anchors into boxes; the inverse of `decode_boxes`.

    Args:
        boxes: float32 [..., 4], pixels; height and width above 0, else the deltas are not finite.
        anchors: float32 [..., 4], pixels; anchors or RoIs with height and width above 0.
        weights: factors of (dy, dx, dh, dw).

    Returns:
        float32 [..., 4] deltas (dy, dx, dh, dw), unitless.
    """
    start, end = corners(boxes)
    anchor_start, anchor_end = corners(anchors)
    anchor_size = anchor_end - anchor_start
    shift = ((start + end) - (anchor_start + anchor_end)) / 2.0 / anchor_size
    return tf.concat([shift, tf.math.log((end - start) / anchor_size)], axis=-1) * tf.constant(weights, boxes.dtype)


def decode_boxes(deltas: tf.Tensor, anchors: tf.Tensor, *, weights: tuple[float, ...]) -> tf.Tensor:
    """Apply deltas to anchors; log sizes are clamped at `MAX_LOG_SIZE`.

    Args:
        deltas: float32 [..., 4] (dy, dx, dh, dw), unitless.
        anchors: float32 [..., 4], pixels, broadcastable against deltas.
        weights: factors that `encode_boxes` multiplied with.

    Returns:
        float32 [..., 4] boxes, pixels, not clipped.
    """
    shift, log_size = tf.split(deltas / tf.constant(weights, deltas.dtype), 2, axis=-1)
    start, end = corners(anchors)
    anchor_size = end - start
    centre = (start + end) / 2.0 + shift * anchor_size
    half = tf.exp(tf.minimum(log_size, MAX_LOG_SIZE)) * anchor_size / 2.0
    return tf.concat([centre - half, centre + half], axis=-1)

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
    size = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return size[..., 0] * size[..., 1]


def _intersection_area(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """One axis at a time: the [N, G] arrays are the largest of the whole assignment."""
    top = tf.maximum(boxes[..., :, None, 0], others[..., None, :, 0])
    height = tf.maximum(tf.minimum(boxes[..., :, None, 2], others[..., None, :, 2]) - top, 0.0)
    left = tf.maximum(boxes[..., :, None, 1], others[..., None, :, 1])
    return height * tf.maximum(tf.minimum(boxes[..., :, None, 3], others[..., None, :, 3]) - left, 0.0)


def pairwise_iou(boxes: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box with every other.

    Args:
        boxes: float32 [..., N, 4], pixels.
        others: float32 [..., G, 4], pixels.

    Returns:
        float32 [..., N, G] in 0..1; 0 where both areas are 0.
    """
    intersection = _intersection_area(boxes, others)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - intersection
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
    size = tf.cast(image_sizes, boxes.dtype)[..., None, :]
    inset = 1.0 if geometry == "legacy" else 0.0
    top_left = tf.clip_by_value(boxes[..., :2], 0.0, size - inset)
    bottom_right = tf.clip_by_value(boxes[..., 2:], inset, size)
    return tf.concat([top_left, bottom_right], axis=-1)


def scale_boxes(boxes: tf.Tensor, factor: float) -> tf.Tensor:
    """Scale boxes [..., 4] by a factor about their centres; not clipped (the authors' RoI expansion)."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2.0
    half = (boxes[..., 2:] - boxes[..., :2]) / 2.0 * factor
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
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    size = boxes[..., 2:] - boxes[..., :2]
    shift = ((boxes[..., :2] + boxes[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / 2.0 / anchor_size
    return tf.concat([shift, tf.math.log(size / anchor_size)], axis=-1) * tf.constant(weights, boxes.dtype)


def decode_boxes(deltas: tf.Tensor, anchors: tf.Tensor, *, weights: tuple[float, ...]) -> tf.Tensor:
    """Apply deltas to anchors; log sizes are clamped at `MAX_LOG_SIZE`.

    Args:
        deltas: float32 [..., 4] (dy, dx, dh, dw), unitless.
        anchors: float32 [..., 4], pixels, broadcastable against deltas.
        weights: factors that `encode_boxes` multiplied with.

    Returns:
        float32 [..., 4] boxes, pixels, not clipped.
    """
    deltas = deltas / tf.constant(weights, deltas.dtype)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2.0 + deltas[..., :2] * anchor_size
    half = tf.exp(tf.minimum(deltas[..., 2:], MAX_LOG_SIZE)) * anchor_size / 2.0
    return tf.concat([centre - half, centre + half], axis=-1)

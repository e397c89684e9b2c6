"""Slow, plain box arithmetic in float64, written from the definitions; boxes are [y1, x1, y2, x2]."""

import numpy as np


def random_boxes(generator, count, height, width, *, smallest=2.0):
    """Boxes [count, 4] of all sizes within an image, as float32."""
    size = smallest + generator.uniform(0, 1, (count, 2)) ** 2 * (np.array([height, width]) - smallest)
    start = generator.uniform(0, 1, (count, 2)) * (np.array([height, width]) - size)
    return np.concatenate([start, start + size], axis=1).astype(np.float32)


def area(box):
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(box, other):
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    intersection = max(height, 0.0) * max(width, 0.0)
    union = area(box) + area(other) - intersection
    return intersection / union if union > 0 else 0.0


def iou_matrix(boxes, others):
    boxes, others = np.float64(boxes), np.float64(others)
    return np.array([[iou(box, other) for other in others] for box in boxes]).reshape(len(boxes), len(others))


def greedy_nms(boxes, scores, threshold, max_output=None):
    """Indices of the kept boxes, best first; a score of -inf is never kept."""
    boxes, kept = np.float64(boxes), []
    for index in np.argsort(-np.float64(scores), kind="stable"):
        if len(kept) == max_output or scores[index] == -np.inf:
            break
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(int(index))
    return kept


def clip(box, height, width, *, legacy=False):
    """Into the image; the legacy rule is that of inclusive corners (x2 = our x2 - 1) within 0..size - 1."""
    y1, x1, y2, x2 = np.float64(box)
    if legacy:
        y1, x1, y2, x2 = np.clip([y1, x1, y2 - 1, x2 - 1], 0, [height - 1, width - 1, height - 1, width - 1])
        return np.array([y1, x1, y2 + 1, x2 + 1])
    return np.clip([y1, x1, y2, x2], 0, [height, width, height, width])


def encode(box, anchor, weights=(1, 1, 1, 1)):
    """Deltas (dy, dx, dh, dw), Fast R-CNN appendix C."""
    (y, x, h, w), (ay, ax, ah, aw) = _centre_and_size(box), _centre_and_size(anchor)
    return np.array([(y - ay) / ah, (x - ax) / aw, np.log(h / ah), np.log(w / aw)]) * weights


def decode(deltas, anchor, weights=(1, 1, 1, 1)):
    dy, dx, dh, dw = np.float64(deltas) / weights
    ay, ax, ah, aw = _centre_and_size(anchor)
    dh, dw = min(dh, np.log(1000 / 16)), min(dw, np.log(1000 / 16))
    y, x, h, w = ay + dy * ah, ax + dx * aw, ah * np.exp(dh), aw * np.exp(dw)
    return np.array([y - h / 2, x - w / 2, y + h / 2, x + w / 2])


def _centre_and_size(box):
    y1, x1, y2, x2 = np.float64(box)
    return (y1 + y2) / 2, (x1 + x2) / 2, y2 - y1, x2 - x1

"""Which boxes the anchors of a config can learn, without building all anchors of every image.

The anchors of a shape lie on a grid, so the ones that overlap a box most are those around its centre. Everything else
follows `targets.anchor_targets`. Letters: n boxes of one image, C candidate anchors.
"""

import math

import numpy as np

from dh_keras.config import Config, RPNConfig
from dh_keras.constants import LEVEL_STRIDES
from dh_keras.data.canvases import canvas_of, canvases, resized_sizes
from dh_keras.ops.cell_anchors import cell_anchors


def match_to_anchors(
    boxes: np.ndarray, *, image_size: np.ndarray, canvas: tuple[int, int], rpn: RPNConfig, geometry: str
) -> tuple[np.ndarray, np.ndarray]:
    """Match the boxes of a training image to its anchors.

    Args:
        boxes: float[n, 4], y1 x1 y2 x2 in pixels of the resized image.
        image_size: (height, width) of the resized image.
        canvas: (height, width) it is padded to.
        rpn: anchors and thresholds.
        geometry: see `cell_anchors`.

    Returns:
        float32[n], the largest IoU of each box with an anchor, and bool[n], whether any anchor is assigned to it.
    """
    boxes = np.asarray(boxes, np.float32)
    candidates = _candidates(boxes, canvas, rpn, geometry)
    own_iou = np.concatenate([_iou(anchors, boxes[i : i + 1])[:, 0] for i, anchors in enumerate(candidates)])
    owner = np.repeat(np.arange(len(boxes)), [len(anchors) for anchors in candidates])
    best = np.zeros(len(boxes), np.float32)
    np.maximum.at(best, owner, own_iou)
    kept = (own_iou >= rpn.positive_iou) | ((own_iou == best[owner]) & (own_iou > 0))
    anchors = np.concatenate(candidates)[kept]
    iou = _iou(anchors, boxes)
    is_best = (iou == best) & (iou > 0) & (iou >= rpn.low_quality_iou)
    matched = iou.argmax(axis=1)
    positive = (iou.max(axis=1) >= rpn.positive_iou) | is_best.any(axis=1)
    if rpn.low_quality_own_box:
        matched = np.where(is_best.any(axis=1), len(boxes) - 1 - is_best[:, ::-1].argmax(axis=1), matched)
    if rpn.ignore_border:
        positive &= (anchors[:, :2] >= 0).all(axis=1) & (anchors[:, 2:] <= np.asarray(image_size)).all(axis=1)
    learned = np.zeros(len(boxes), bool)
    learned[matched[positive]] = True
    return best, learned


def resize_to_config(sizes: np.ndarray, config: Config) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return int32[N, 2] sizes after resizing and the canvas of each image, as (height, width) in pixels."""
    limits = {"min_size": config.data.min_size, "max_size": config.data.max_size}
    table = canvases(**limits)
    return resized_sizes(sizes, **limits), [table[index] for index in canvas_of(sizes, **limits)]


def _candidates(boxes: np.ndarray, canvas: tuple[int, int], rpn: RPNConfig, geometry: str) -> list[np.ndarray]:
    """Return float32[C, 4] for each box: all anchors that can reach positive_iou, and the nearest of every shape."""
    # Farther from the centre of a box than this share of its side, no anchor reaches the IoU; and half a side away, no
    # anchor holds the whole of a small box, which all that do overlap alike.
    reach = max(0.5, (1 - rpn.positive_iou) / (2 * rpn.positive_iou))
    found: list[list[np.ndarray]] = [[] for _ in boxes]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for stride, size in zip(LEVEL_STRIDES.values(), rpn.anchor_sizes, strict=True):
        base = cell_anchors(size, rpn.anchor_ratios, stride, geometry=geometry)
        cells = -(-np.asarray(canvas) // stride)
        middle = (base[0, :2] + base[0, 2:]) / 2
        nearest = np.clip(np.rint((centres - middle) / stride), 0, cells - 1)
        steps = math.ceil((base[:, 2:] - base[:, :2]).max() * reach / stride + 0.5)
        around = np.stack(np.meshgrid(*[np.arange(-steps, steps + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        for i, cell in enumerate(nearest):
            places = cell + around
            places = places[((places >= 0) & (places < cells)).all(axis=1)] * stride
            found[i].append((np.tile(places, 2)[:, None] + base).reshape(-1, 4))
    return [np.concatenate(anchors).astype(np.float32) for anchors in found]


def _iou(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return float32[C, n]."""
    starts = np.maximum(anchors[:, None, :2], boxes[None, :, :2])
    ends = np.minimum(anchors[:, None, 2:], boxes[None, :, 2:])
    shared = np.maximum(ends - starts, 0).prod(axis=-1)
    areas = [(values[:, 2:] - values[:, :2]).prod(axis=-1) for values in (anchors, boxes)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)

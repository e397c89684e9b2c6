"""Which boxes the anchors of a config can learn, without building all anchors of every image.

The anchors of a shape lie on a grid, and none overlaps a box more than the one nearest to its centre. So the nearest
ones tell which shapes matter for a box, and only of those the anchors around it are looked at. Everything else follows
`targets.anchor_targets`. Letters: n boxes of one image, C candidate anchors, S shapes.
"""

import numpy as np

from dh_keras.config.schema import Config, RPNConfig
from dh_keras.data.canvases import canvas_of, canvases, resized_sizes
from dh_keras.modeling.constants import LEVEL_STRIDES
from dh_keras.modeling.ops.cell_anchors import cell_anchors

_ROUNDING = 1e-4  # anchors that overlap alike may differ by this share in float32


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
    anchors, owner = _candidates(boxes, canvas, rpn, geometry)
    own_iou = elementwise_iou(anchors, boxes[owner])
    best = np.zeros(len(boxes), np.float32)
    np.maximum.at(best, owner, own_iou)
    kept = (own_iou >= rpn.positive_iou) | ((own_iou == best[owner]) & (own_iou > 0))
    anchors = anchors[kept]
    iou = elementwise_iou(anchors[:, None], boxes[None])
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


def _candidates(
    boxes: np.ndarray, canvas: tuple[int, int], rpn: RPNConfig, geometry: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32[C, 4], all anchors that can be assigned because of some box, and int64[C], that box of each."""
    levels = list(zip(LEVEL_STRIDES.values(), rpn.anchor_sizes, strict=True))
    shapes = np.concatenate([cell_anchors(size, rpn.anchor_ratios, s, geometry=geometry) for s, size in levels])
    strides = np.repeat([stride for stride, _ in levels], len(rpn.anchor_ratios))
    cells = -(-np.asarray(canvas) // strides[:, None])  # [S, 2]
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = centres[:, None] - (shapes[:, :2] + shapes[:, 2:]) / 2
    nearest = np.clip(np.rint(offsets / strides[:, None]), 0, cells - 1)  # [n, S, 2]
    best_of_shape = elementwise_iou(_place(nearest, strides[:, None], shapes), boxes[:, None])
    enough = np.minimum(best_of_shape.max(axis=1, keepdims=True), rpn.positive_iou)
    # Around the nearest anchor lie others that overlap alike, as they hold the box or lie in it, and farther ones that
    # still reach positive_iou.
    shape_sides = shapes[:, 2:] - shapes[:, :2]
    alike = np.abs(shape_sides - sides[:, None]) / 2
    reach = np.maximum(alike, shape_sides * (1 - rpn.positive_iou) / (2 * rpn.positive_iou))
    steps = np.ceil(reach / strides[:, None] + 0.5)
    found, owners = [np.empty((0, 4), np.float32)], []
    for box, shape in np.argwhere((best_of_shape >= enough * (1 - _ROUNDING)) & (best_of_shape > 0)):
        low = np.maximum(nearest[box, shape] - steps[box, shape], 0)
        high = np.minimum(nearest[box, shape] + steps[box, shape], cells[shape] - 1)
        rows, columns = (np.arange(start, end + 1) for start, end in zip(low, high, strict=True))
        places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        found.append(_place(places, strides[shape], shapes[shape]))
        owners += [box] * len(places)
    return np.concatenate(found), np.array(owners, np.int64)


def _place(cells: np.ndarray, stride: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return float32[..., 4] anchors of cells [..., 2]."""
    return np.concatenate([cells * stride] * 2, axis=-1).astype(np.float32) + shape


def elementwise_iou(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the IoU of float[..., 4] with float[..., 4], one by one."""
    anchor_y1, anchor_x1, anchor_y2, anchor_x2 = np.moveaxis(anchors, -1, 0)
    box_y1, box_x1, box_y2, box_x2 = np.moveaxis(boxes, -1, 0)
    height = np.maximum(np.minimum(anchor_y2, box_y2) - np.maximum(anchor_y1, box_y1), 0)
    width = np.maximum(np.minimum(anchor_x2, box_x2) - np.maximum(anchor_x1, box_x1), 0)
    shared = height * width
    areas = (anchor_y2 - anchor_y1) * (anchor_x2 - anchor_x1) + (box_y2 - box_y1) * (box_x2 - box_x1)
    return shared / np.maximum(areas - shared, 1e-9)

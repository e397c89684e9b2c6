"""Boxes against their class and against the anchors: unusual, tiny, out of reach.

Letter: M boxes.
"""

from collections.abc import Sequence

import numpy as np

from dh_keras.config.schema import Config
from dh_keras.data.formats.findings import Finding
from dh_keras.modeling.constants import LEVEL_STRIDES
from dh_keras.reports.data_doctor.anchor_coverage import match_to_anchors, resize_to_config
from dh_keras.reports.data_doctor.data_checks import boxes_by_image
from dh_keras.reports.data_doctor.examined import Examined
from dh_keras.reports.heads.statistics import size_masks

COVERAGE_IOUS = (0.7, 0.5)
UNUSUAL_SCORE = 5.0  # robust standard deviations from the median of the class
_MIN_CLASS_BOXES = 20  # fewer do not say what is usual
# A class may be so uniform that anything stands out: spreads below these are taken as these.
_FEATURES = (
    ("smaller", "larger", 0.1),
    ("flatter", "taller", 0.1),
    ("darker", "brighter", 5.0),
    ("bluer", "redder", 5.0),
    ("more purple", "greener", 5.0),
)


def anchor_findings(examined: Examined, config: Config) -> tuple[list[Finding], np.ndarray]:
    """Find boxes that are tiny or that no anchor learns at the input size of a config.

    Returns:
        The findings, and float32[M], the best IoU of each usable box with an anchor; NaN for the others.
    """
    best = np.full(len(examined.boxes), np.nan, np.float32)
    found, ignores_border = [], config.model.rpn.ignore_border
    resized, canvas = resize_to_config(examined.sizes, config)
    for rows in boxes_by_image(examined):
        image = examined.split.box_images[rows[0]]
        if len(rows) > config.model.max_detections:
            name = examined.split.images[image].file_name
            message = f"{name}: {len(rows)} boxes, and model.max_detections is {config.model.max_detections}"
            found.append(Finding("more_boxes_than_detections", examined.split.name, message, examined.picture(image)))
        boxes = examined.boxes[rows] * np.tile(resized[image] / examined.sizes[image], 2)
        best[rows], learned = match_to_anchors(
            boxes,
            image_size=resized[image],
            canvas=canvas[image],
            rpn=config.model.rpn,
            geometry=config.model.geometry,
        )
        for row, box in zip(rows, boxes, strict=True):
            height, width = box[2:] - box[:2]
            if min(height, width) < LEVEL_STRIDES["P2"]:
                found.append(examined.box_finding("tiny_box", row, message=f"{width:.1f}x{height:.1f} when resized"))
        for row in rows[~learned]:
            message = f"best IoU with an anchor {best[row]:.2f}"
            if best[row] >= config.model.rpn.low_quality_iou:
                message += ", which is taken by another box" + (" or crosses the border" if ignores_border else "")
            found.append(examined.box_finding("no_anchor", row, message=message))
    return found, best


def anchor_coverage(examined: Examined, best_iou: np.ndarray) -> dict[str, dict[str, float | int | None]]:
    """Return, for all boxes and each COCO size, their number and the share that an anchor overlaps so far.

    Args:
        examined: the split.
        best_iou: float[M], from `anchor_findings`.

    Returns:
        {"all" | "small" | "medium" | "large": {"boxes": n, "0.7": share in 0..1 or None, "0.5": ...}}.
    """
    rows = {}
    for name, of_size in size_masks(examined.box_sides().prod(axis=1)).items():
        best = best_iou[examined.usable & of_size]
        shares = {str(iou): float(np.mean(best >= iou)) if len(best) else None for iou in COVERAGE_IOUS}
        rows[name] = {"boxes": len(best), **shares}
    return rows


def unusual_boxes(splits: Sequence[Examined]) -> list[Finding]:
    """Find boxes whose size, shape or colour is far from the median of their class, over all splits.

    The score is robust (median and median absolute deviation), so the wrong boxes do not hide themselves. Nothing
    is known about the content: a wrong label of a usual size and colour is not found.
    """
    features = np.concatenate([_features(examined) for examined in splits])
    usable = np.concatenate([examined.usable for examined in splits]) & np.isfinite(features).all(axis=1)
    names = np.concatenate([[e.class_of(box) for box in range(len(e.boxes))] for e in splits if len(e.boxes)] or [[]])
    places = [(examined, box) for examined in splits for box in range(len(examined.boxes))]
    usual = {}
    for name in np.unique(names):
        chosen = features[usable & (names == name)]
        if len(chosen) >= _MIN_CLASS_BOXES:
            median = np.median(chosen, axis=0)
            spread = 1.4826 * np.median(np.abs(chosen - median), axis=0)
            usual[name] = median, np.maximum(spread, [floor for *_, floor in _FEATURES])
    found = []
    for row in np.flatnonzero(usable):
        if names[row] in usual:
            score, message = _judge(features[row], names[row], usual)
            if score >= UNUSUAL_SCORE:
                examined, box = places[row]
                found.append((score, examined.box_finding("unusual_box", box, message=message)))
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]


def _judge(features: np.ndarray, name: str, usual: dict) -> tuple[float, str]:
    """Return how unusual a box is for its class, and in what; say which class it would be usual for, if any."""
    scores = {other: (features - median) / spread for other, (median, spread) in usual.items()}
    worst = int(np.abs(scores[name]).argmax())
    score = scores[name][worst]
    message = f"much {_FEATURES[worst][int(score > 0)]} than its class ({score:+.1f} robust standard deviations)"
    nearest = min(scores, key=lambda other: np.abs(scores[other]).max())
    if nearest != name and np.abs(scores[nearest]).max() < UNUSUAL_SCORE / 2:
        message += f"; it would be usual as {nearest}"
    return abs(score), message


def _features(examined: Examined) -> np.ndarray:
    """Return float64[M, 5], in the order of `_FEATURES`; sizes relative to the image, both as logarithms."""
    sides = examined.box_sides()
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.log(sides.prod(axis=1) / examined.sizes[examined.split.box_images].prod(axis=1)) / 2
        shape = np.log(sides[:, 0] / sides[:, 1])
    red, green, blue = examined.colors.T.astype(np.float64)
    return np.stack([size, shape, (red + green + blue) / 3, red - blue, green - (red + blue) / 2], axis=1)

"""Boxes that are something else than COCO's x, y, width and height in pixels, as other tools write them.

Letter: M boxes.
"""

import numpy as np

from dh_keras.data.dataset import has_size
from dh_keras.data.formats.findings import Finding

_NEARLY_ALL = 0.95
_MIN_CORNERS = 4  # fewer boxes fit as corners by chance


def unlike_coco(split: str, longer: list, xywh: np.ndarray) -> list[Finding]:
    """Find whole files of boxes with more than four numbers, or in shares of the image.

    Args:
        split: for the finding.
        longer: the boxes of more than four numbers, as in the file.
        xywh: float64[M, 4], NaN where there are no four numbers.
    """
    if 2 * len(longer) > len(xywh):
        message = f"{len(longer)} of {len(xywh)} boxes have more than four numbers, such as {longer[0]!r:.80}"
        refusal = f"{message}; write x, y, width and height of upright boxes"
        return [Finding("long_boxes", split, message, refusal=refusal)]
    boxes = xywh[has_size(xywh)]
    shares = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] < 1).any(axis=1)
    if len(boxes) and shares.sum() >= _NEARLY_ALL * len(boxes):
        message = (
            f"{shares.sum()} of {len(boxes)} boxes look like shares of the image, such as {boxes[shares][0].tolist()}"
        )
        refusal = f"{message}; expected pixels, multiply them by the width and height of the image"
        return [Finding("boxes_as_shares", split, message, refusal=refusal)]
    return []


def corners(split: str, xywh: np.ndarray, sizes: np.ndarray, *, tolerance: float) -> list[Finding]:
    """Find whole files of boxes x1, y1, x2, y2: most reach out of their image, and all lie inside as corners.

    Args:
        split: for the finding.
        xywh: float64[M, 4], as in the file.
        sizes: [M, 2], (height, width) of the image of each box in pixels.
        tolerance: pixels that are no reaching out.
    """
    usable = has_size(xywh)
    boxes, limits = xywh[usable], sizes[usable, ::-1] + tolerance
    outside = (boxes[:, :2] + boxes[:, 2:] > limits).any(axis=1)
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= limits).all()
    if len(boxes) < _MIN_CORNERS or 2 * outside.sum() <= len(boxes) or not inside:
        return []
    message = (
        f"{outside.sum()} of {len(boxes)} boxes reach out of their images and all fit as corners x1, y1, x2, y2, such "
        f"as {boxes[outside][0].tolist()}"
    )
    refusal = f"{message}; expected x, y, width, height: subtract the first corner from the second"
    return [Finding("boxes_as_corners", split, message, refusal=refusal)]

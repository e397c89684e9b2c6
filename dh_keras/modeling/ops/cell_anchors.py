"""Anchors of one grid cell. TensorFlow is not imported here, so that data can be measured against them anywhere."""

from collections.abc import Sequence

import numpy as np


def cell_anchors(size: float, ratios: Sequence[float], stride: int, *, geometry: str) -> np.ndarray:
    """Anchors of the grid cell at row 0, column 0.

    Args:
        size: square root of the anchor area, pixels.
        ratios: height / width.
        stride: pixels between neighbouring cells.
        geometry: "continuous" centres the anchors on (0, 0); "legacy" rounds heights and widths to whole pixels and
            centres them on the cell, as the authors' release does (inclusive boxes, here with y2 and x2 one larger).

    Returns:
        float32 [A, 4], pixels, in the order of ratios.
    """
    ratios = np.asarray(ratios, np.float64)
    if geometry == "legacy":
        widths = np.round(np.sqrt(stride * stride / ratios))
        heights = np.round(widths * ratios)
        widths, heights, centre = widths * size / stride, heights * size / stride, stride / 2.0
    else:
        widths, heights, centre = size / np.sqrt(ratios), size * np.sqrt(ratios), 0.0
    half = np.stack([heights, widths], axis=1) / 2.0
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)

"""RoIAlign from its definition, in float64, one sample after the other; nothing is shared with the package.

Mask R-CNN, section 3, as Detectron2 (`aligned=True`) and the first Detectron implementations (legacy) compute it. Boxes
are [y1, x1, y2, x2] in pixels, x2 - x1 wide; in legacy geometry they stand for inclusive boxes ending at x2 - 1.
"""

import math

import numpy as np

LEVELS = ("P2", "P3", "P4", "P5")
STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}
BINS = (7, 7)


def level_of(roi):
    """FPN paper, equation 1: the level of a box whose sqrt(area) is 224 is P4."""
    y1, x1, y2, x2 = np.float64(roi)
    size = math.sqrt(max(y2 - y1, 0.0) * max(x2 - x1, 0.0))
    return "P" + str(min(max(math.floor(4 + math.log2(size / 224 + 1e-6)), 2), 5))


def bilinear(y, x, height, width):
    """Cells (row, column, weight) that a sample reads; none when it is more than a cell outside of the map."""
    if y < -1 or y > height or x < -1 or x > width:
        return []
    cells = []
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    for row, row_weight in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
        for column, column_weight in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
            cells.append((row, column, row_weight * column_weight))
    return cells


def axis_samples(start, end, stride, bins, sampling_ratio, legacy):
    """For each of the bins along one axis, the positions of its samples in cells."""
    if legacy:
        start, size = start / stride, max((end - 1) / stride - start / stride, 1.0)
    else:
        start, size = start / stride - 0.5, end / stride - start / stride
    bin_size = size / bins
    samples = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_size), 0)
    return [[start + (b + (s + 0.5) / samples) * bin_size for s in range(samples)] for b in range(bins)]


def roi_align(features, rois, image_index, levels, *, sampling_ratio, legacy, upstream=None, bins=BINS):
    """Pool every RoI.

    Args:
        features: float [B, H, W, C] for each of the levels.
        rois: [R, 4].
        image_index: [R].
        levels: names of levels, one per RoI.
        sampling_ratio: samples per bin and axis, 0 for ceil(bin size).
        legacy: which geometry.
        upstream: [R, *bins, C], gradient of some loss with respect to the output, or None for zeros.
        bins: along both axes.

    Returns:
        Output [R, *bins, C], and the gradient of the loss with respect to the features of every level.
    """
    features = {level: np.float64(x) for level, x in features.items()}
    channels = next(iter(features.values())).shape[-1]
    output = np.zeros([len(rois), *bins, channels])
    upstream = output if upstream is None else np.float64(upstream)
    gradients = {level: np.zeros_like(x) for level, x in features.items()}
    for r, (roi, image, level) in enumerate(zip(np.float64(rois), image_index, levels, strict=True)):
        feature, gradient, stride = features[level][image], gradients[level][image], STRIDES[level]
        rows = axis_samples(roi[0], roi[2], stride, bins[0], sampling_ratio, legacy)
        columns = axis_samples(roi[1], roi[3], stride, bins[1], sampling_ratio, legacy)
        for i, j in np.ndindex(*bins):
            count = max(len(rows[i]) * len(columns[j]), 1)
            for y in rows[i]:
                for x in columns[j]:
                    for row, column, weight in bilinear(y, x, *feature.shape[:2]):
                        output[r, i, j] += weight / count * feature[row, column]
                        gradient[row, column] += weight / count * upstream[r, i, j]
    return output, gradients

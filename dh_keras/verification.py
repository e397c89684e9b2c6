"""Whether two detectors say the same: a run folder and the SavedModel made of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dh_keras.detector import Detector
from dh_keras.errors import DataError

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 0.1


def compare_detectors(detector: Detector, exported: Detector, paths: Sequence[Path]) -> str:
    """Compare the detections in some photographs.

    Args:
        detector: what was exported.
        exported: what came of it.
        paths: image files.

    Returns:
        A sentence with the number of detections and the largest differences.

    Raises:
        DataError: when they differ in a category, by more than 0.1 pixel or by more than 0.001 in a score.
    """
    total, box_difference, score_difference = 0, 0.0, 0.0
    for path in paths:
        ours, theirs = detector(path), exported(path)
        if ours.category_ids.tolist() != theirs.category_ids.tolist():
            raise DataError(f"{path}: the export finds {len(theirs)} detections, the run folder {len(ours)}, or others")
        if len(ours):
            box_difference = max(box_difference, float(np.abs(ours.boxes - theirs.boxes).max()))
            score_difference = max(score_difference, float(np.abs(ours.scores - theirs.scores).max()))
        total += len(ours)
    differences = f"boxes within {box_difference:.2g} pixel, scores within {score_difference:.2g}"
    summary = f"{total} detections in {len(paths)} image(s), {differences}"
    if box_difference > BOX_TOLERANCE or score_difference > SCORE_TOLERANCE:
        raise DataError(f"the export differs from the run folder: {summary}")
    return f"verified: {summary}"

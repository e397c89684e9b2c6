"""Whether two detectors say the same: a run folder and the SavedModel made of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector

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
        DataError: when a detection of one has no equal in the other, see `match_detections`.
    """
    total, box_difference, score_difference = 0, 0.0, 0.0
    for path in paths:
        ours, theirs = detector(path), exported(path)
        pairs = match_detections(ours, theirs)
        if len(pairs) < len(ours) or len(ours) != len(theirs):
            found = f"{len(theirs)} detections, {len(pairs)} of them those of the run folder's {len(ours)}"
            raise DataError(f"{path}: the export finds {found}")
        for one, other in pairs:
            box_difference = max(box_difference, float(np.abs(ours.boxes[one] - theirs.boxes[other]).max()))
            score_difference = max(score_difference, float(abs(ours.scores[one] - theirs.scores[other])))
        total += len(ours)
    differences = f"boxes within {box_difference:.2g} pixel, scores within {score_difference:.2g}"
    return f"verified: {total} detections in {len(paths)} image(s), {differences}"


def match_detections(ours: ImageDetections, theirs: ImageDetections) -> list[tuple[int, int]]:
    """Pairs of equal detections, whatever the order of equal scores.

    Args:
        ours: detections of an image.
        theirs: detections of the same image.

    Returns:
        Indices (ours, theirs) of one category whose boxes differ by at most 0.1 pixel and scores by at most 0.001.
    """
    pairs, free = [], list(range(len(theirs)))
    for one in range(len(ours)):
        for other in free:
            same_category = ours.category_ids[one] == theirs.category_ids[other]
            close_box = np.abs(ours.boxes[one] - theirs.boxes[other]).max() <= BOX_TOLERANCE
            if same_category and close_box and abs(ours.scores[one] - theirs.scores[other]) <= SCORE_TOLERANCE:
                pairs.append((one, other))
                free.remove(other)
                break
    return pairs

"""The SavedModel of a detector: numbered folder, assets and warm-up requests, and whether it finds the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import new_folder, require_absent, write_json
from dh_keras.inference.detector import Detector, ModelDetector
from dh_keras.inference.serving_module import LABELS_FILE, SIGNATURE_FILE
from dh_keras.paths import to_path
from dh_keras.run.classes import write_classes
from dh_keras.serving.warmup import warmup_requests, write_warmup_requests

_CHOOSE_NEXT = "choose the next version number"
SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 0.1


def export_saved_model(detector: Detector, output: str | Path) -> Path:
    """Write a SavedModel with the signatures `serving_default` (image_bytes) and `serve_image` (images).

    It holds stock TensorFlow operations only and is loaded by `tf.saved_model.load` without this package or Keras. It
    is written beside its place and moved there when it is complete.

    Args:
        detector: of a run folder or of a model; what is a SavedModel already cannot be exported.
        output: the versioned folder, such as models/cells/1; must not exist.

    Returns:
        The folder.

    Raises:
        DataError: for the detector of a SavedModel, and when the folder exists; nothing in it is touched.

    Examples:
        >>> export_saved_model(Detector.load("runs/cells"), "models/cells/1")
    """
    module, output = exportable(detector).module, to_path(output)
    require_absent(output, _CHOOSE_NEXT)
    if not output.name.isdigit():
        raise DataError(f"{output}: TensorFlow Serving wants a numbered folder; use {output / '1'}")
    with new_folder(output, _CHOOSE_NEXT) as folder:
        tf.saved_model.save(module, str(folder), signatures=module.signatures())
        write_assets(folder, detector, module.describe())
        write_warmup_requests(folder, warmup_requests(module.target, module.warm_up_rois))
    return output


def exportable(detector: Detector) -> ModelDetector:
    """The detector, if it holds a network.

    Raises:
        DataError: when it is an export itself.
    """
    if not isinstance(detector, ModelDetector):
        raise DataError(f"{detector.path}: is exported already; export takes a run folder")
    return detector


def write_assets(folder: Path, detector: Detector, description: dict[str, Any]) -> None:
    """Write what any export says of itself: its classes, and the description with each class's score to show."""
    write_classes(folder / "assets" / LABELS_FILE, detector.categories)
    scores = {category.id: score for category, score in zip(detector.categories, detector.best_scores, strict=True)}
    write_json(folder / "assets" / SIGNATURE_FILE, {**description, "best_scores": scores})


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
    pairs = []
    equal = ours.category_ids[:, None] == theirs.category_ids
    equal &= (np.abs(ours.boxes[:, None] - theirs.boxes) <= BOX_TOLERANCE).all(axis=2)
    equal &= np.abs(ours.scores[:, None] - theirs.scores) <= SCORE_TOLERANCE
    for one, of_one in enumerate(equal):
        if of_one.any():
            pairs.append((one, int(of_one.argmax())))
            equal[:, pairs[-1][1]] = False
    return pairs

"""From the served model's outputs, the dict of the SavedModel's contract, to the detections of each image.

Letters: D rows of detections, padding included.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.run.classes import Category


def split_by_image(outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outputs by image, from the outputs of a batch by name."""
    return [{name: column[row] for name, column in outputs.items()} for row in range(len(outputs["num_detections"]))]


def read_served(outputs: Mapping[str, Any], known: Sequence[Category] | None = None) -> ImageDetections:
    """The outputs of one image, arrays or lists, without their padding.

    Args:
        outputs: detection_boxes [D, 4], detection_scores [D], detection_classes [D] (category ids),
            detection_class_names [D] (str or bytes) and num_detections.
        known: all classes of the model; None knows the classes that were found in the image only.
    """
    count = int(outputs["num_detections"])
    known = _found_classes(outputs, count) if known is None else known
    ids = np.asarray(outputs["detection_classes"], np.int32)[:count].tolist()
    class_of = {category.id: index for index, category in enumerate(known)}
    return ImageDetections(
        boxes=np.asarray(outputs["detection_boxes"], np.float32).reshape(-1, 4)[:count],
        scores=np.asarray(outputs["detection_scores"], np.float32)[:count],
        classes=np.array([class_of[id_] for id_ in ids], np.int32),
        known=tuple(known),
    )


def _found_classes(outputs: Mapping[str, Any], count: int) -> list[Category]:
    names = outputs["detection_class_names"][:count]
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    ids = np.asarray(outputs["detection_classes"])[:count].tolist()
    return [Category(*pair) for pair in dict(zip(ids, names, strict=True)).items()]

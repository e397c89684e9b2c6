"""What was found in one image, as NumPy arrays: what a detector returns and what everything behind it takes.

Inside the network detections are tensors of a batch in the resized frame (`modeling.detections.Detections`); what the
served model returns is a dict with the names of the SavedModel's contract; everywhere else they are this.

Letters: D detections of one image, K classes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dh_keras.run.classes import Category


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageDetections:
    """Detections of one image; empty arrays say that nothing was found.

    Args:
        boxes: float32 [D, 4], (y1, x1, y2, x2) in pixels of the upright original image.
        scores: float32 [D] in 0..1, higher is surer; a detector gives the best first.
        classes: int32 [D], class index 0..K-1 (not a category id).
        known: the K classes; class index k is known[k].
        image_id: id of the image in an annotation file; None where there is none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    known: tuple[Category, ...]
    image_id: int | None = None

    def __len__(self) -> int:
        """Number of detections."""
        return len(self.scores)

    @property
    def category_ids(self) -> np.ndarray:
        """int32 [D], ids of the dataset that the detector was trained on."""
        return np.array([self.known[index].id for index in self.classes.tolist()], np.int32)

    @property
    def categories(self) -> tuple[str, ...]:
        """D names."""
        return tuple(self.known[index].name for index in self.classes.tolist())

    def above(self, score: float | Sequence[float]) -> "ImageDetections":
        """Only the detections that score more than `score`, one for all or one for each of the K classes."""
        keep = self.scores > (score if np.isscalar(score) else np.asarray(score)[self.classes])
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], classes=self.classes[keep])

    def of_classes(self, names: Collection[str]) -> "ImageDetections":
        """Only the detections of classes of these names, all if there are none; the K classes stay as they are."""
        if not names:
            return self
        keep = np.array([one.name in names for one in self.known], bool)[self.classes]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], classes=self.classes[keep])

    def among(self, known: tuple[Category, ...]) -> "ImageDetections":
        """Only the detections of some of the classes, found by their names; they are all that is known then."""
        place = {category.name: index for index, category in enumerate(known)}
        index = np.array([place.get(category.name, -1) for category in self.known], np.int32)[self.classes]
        keep = index >= 0
        rows = {"boxes": self.boxes[keep], "scores": self.scores[keep], "classes": index[keep]}
        return replace(self, **rows, known=known)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Ready for JSON: box [y1, x1, y2, x2], score, category_id, category."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.category_ids.tolist(), self.categories, strict=True)
        return [{"box": box, "score": score, "category_id": id_, "category": name} for box, score, id_, name in rows]

"""Which detections are right: over all scores as COCO's AP counts, and at one score for the confusion matrix.

Letters: G ground-truth boxes, D detections, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from dh_keras.data.dataset import CocoDataset, TruthBoxes, boxes_from_xywh
from dh_keras.evaluation.coco_metrics import boxes_to_xywh, run_cocoeval
from dh_keras.evaluation.image_detections import ImageDetections

MATCH_IOU = 0.5


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class over all images, and which of them are right.

    Args:
        scores: float64 [D], best first; detections that fell into a crowd are left out.
        correct: bool [D], whether the detection found a box that no better one had found.
        boxes: ground-truth boxes of the class, crowds left out.
    """

    scores: np.ndarray
    correct: np.ndarray
    boxes: int


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """What became of the boxes and of the detections of one image.

    Args:
        gt_boxes: float64 [G, 4], (y1, x1, y2, x2) in pixels, crowds left out.
        gt_classes: int64 [G].
        boxes: float64 [D, 4], detections above the score, best first; those that fell into a crowd are left out.
        scores: float64 [D].
        classes: int64 [D].
        found: int64 [D], the ground-truth box that the detection found, of its class or of another, or -1.
    """

    gt_boxes: np.ndarray
    gt_classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    found: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool [D], whether the detection found a box of its class."""
        return (self.found >= 0) & (self._found_classes() == self.classes)

    @property
    def confused(self) -> np.ndarray:
        """bool [D], whether it found a box of another class."""
        return (self.found >= 0) & (self._found_classes() != self.classes)

    @property
    def finder(self) -> np.ndarray:
        """int64 [G], the detection that found the box, or -1."""
        finder = np.full(len(self.gt_boxes), -1)
        finder[self.found[self.found >= 0]] = np.flatnonzero(self.found >= 0)
        return finder

    @property
    def missed_count(self) -> int:
        """Boxes that no detection of their class found."""
        return len(self.gt_boxes) - int(self.correct.sum())

    @property
    def false_count(self) -> int:
        """Detections that found no box of their class."""
        return len(self.boxes) - int(self.correct.sum())

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None where there is nothing to find and nothing was found."""
        total = len(self.gt_boxes) + len(self.boxes)
        return 2 * int(self.correct.sum()) / total if total else None

    def _found_classes(self) -> np.ndarray:
        return np.append(self.gt_classes, -1)[self.found]


def match_classes(
    dataset: CocoDataset, detections: Sequence[ImageDetections], *, iou: float, max_detections: int
) -> list[ClassMatches]:
    """Match detections to the ground truth as COCO's AP at one IoU does.

    Args:
        dataset: the ground truth.
        detections: one entry per image.
        iou: least IoU of a detection with the box that it finds.
        max_detections: best detections per image and class to look at.

    Returns:
        One entry per class, in class order.
    """
    evaluator = run_cocoeval(dataset, detections, limits=[max_detections], ious=[iou], by_image=True)
    order, images = [int(category_id) for category_id in evaluator.params.catIds], len(evaluator.params.imgIds)
    by_class = []
    for category_id in dataset.category_ids.tolist():
        start = order.index(category_id) * len(evaluator.params.areaRng) * images  # "all sizes" comes first
        found = [entry for entry in evaluator.evalImgs[start : start + images] if entry is not None]
        scores = np.concatenate([np.zeros(0), *(entry["dtScores"] for entry in found)])
        correct = np.concatenate([np.zeros(0), *(entry["dtMatches"][0] for entry in found)]) > 0
        counted = np.concatenate([np.zeros(0), *(entry["dtIgnore"][0] for entry in found)]) == 0
        best_first = np.argsort(-scores[counted], kind="stable")
        boxes = sum(int(np.sum(np.asarray(entry["gtIgnore"]) == 0)) for entry in found)
        by_class.append(ClassMatches(scores[counted][best_first], correct[counted][best_first], boxes))
    return by_class


def match_images(dataset: CocoDataset, detections: Sequence[ImageDetections], *, score: float) -> list[ImageMatches]:
    """Match the detections above a score at an IoU of 0.5: boxes of their own class first, then what is left over.

    The best detection chooses first and takes the free box it overlaps most, so what is correct here is what COCO
    counts as correct at this score. A detection of a class whose crowd covers half of it is neither right nor wrong.

    Args:
        dataset: the ground truth.
        detections: one entry per image, in dataset order.
        score: detections must score more than this.
    """
    class_of = {category_id: index for index, category_id in enumerate(dataset.category_ids.tolist())}
    truth = dict(zip(dataset.image_ids.tolist(), dataset.truth.by_image(len(dataset)), strict=True))
    return [_match_image(truth[entry.image_id], class_of, entry, score) for entry in detections]


def _match_image(truth: TruthBoxes, class_of: dict[int, int], entry: ImageDetections, score: float) -> ImageMatches:
    crowd, gt_boxes = truth.crowd, boxes_from_xywh(truth.xywh)
    gt_classes = np.array([class_of[number] for number in truth.category_ids.tolist()], np.int64)
    order = np.argsort(-np.asarray(entry.scores, np.float64), kind="stable")
    order = order[np.asarray(entry.scores)[order] > score]
    boxes = np.asarray(entry.boxes, np.float64).reshape(-1, 4)[order]
    scores, classes = np.asarray(entry.scores, np.float64)[order], np.asarray(entry.classes, np.int64)[order]

    overlap = _overlaps(boxes, gt_boxes, crowd)
    same_class = classes[:, None] == gt_classes
    found = np.full(len(boxes), -1)
    _take_free_boxes(np.where(same_class & ~crowd, overlap, 0.0), found)
    ignored = (found < 0) & (np.where(same_class & crowd, overlap, 0.0) >= MATCH_IOU).any(axis=1)
    _take_free_boxes(np.where(ignored[:, None] | crowd, 0.0, overlap), found)

    number = np.append(np.cumsum(~crowd) - 1, -1)  # a box's place among those that are no crowd
    return ImageMatches(
        gt_boxes[~crowd],
        gt_classes[~crowd],
        boxes[~ignored],
        scores[~ignored],
        classes[~ignored],
        number[found[~ignored]],
    )


def _overlaps(boxes: np.ndarray, gt_boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """float64 [D, G]: IoU, and with a crowd the share of the detection that it covers."""
    if not len(boxes) or not len(gt_boxes):
        return np.zeros((len(boxes), len(gt_boxes)))
    return coco_mask.iou(boxes_to_xywh(boxes), boxes_to_xywh(gt_boxes), crowd.astype(np.uint8))


def _take_free_boxes(overlap: np.ndarray, found: np.ndarray) -> None:
    """Give every detection that has none yet, best first, the free box that it overlaps most; writes into `found`."""
    free = ~np.isin(np.arange(overlap.shape[1]), found)
    for index in np.flatnonzero(found < 0):
        candidates = np.where(free, overlap[index], 0.0)
        if candidates.size and candidates.max() >= MATCH_IOU:
            found[index] = int(np.argmax(candidates))
            free[found[index]] = False

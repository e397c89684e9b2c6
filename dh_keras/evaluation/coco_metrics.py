"""COCO average precision of detections, computed by faster-coco-eval and read out without pycocotools' known traps.

Both libraries give the same numbers, which a test compares, but pycocotools keeps every image, class and size that it
has looked at. Its `summarize` prints -1 where nothing is defined, only works for 100 detections, and its loader fails
when there is no detection at all. Here a number that is not defined (no ground truth of that size or class) is None.

Shape letters: D detections of one image, K classes.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import faster_coco_eval
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dh_keras.data.dataset import CocoDataset, TruthBoxes
from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.run.classes import class_labels

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")

# Positions in COCOeval's arrays.
_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


def evaluate_detections(
    dataset: CocoDataset, detections: Sequence[ImageDetections], *, max_detections: int = 100
) -> dict[str, object]:
    """Compute COCO metrics over the images that are given, which may be a part of the dataset.

    Args:
        dataset: the ground truth.
        detections: one entry per image with its id, also where nothing was detected; other images are left out.
        max_detections: best detections per image and class that AP looks at; AR100 always looks at 100.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR100 (float; None without ground truth to measure it on), images (int) and
        per_class: {name: {AP, AP50, AP75, boxes}}, where boxes counts the ground truth without crowds.

    Raises:
        ValueError: for an image that the dataset lacks or that comes twice, shapes that do not agree, a class that does
            not exist, numbers that are not finite, or max_detections below 1.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections: expected an integer of at least 1, got {max_detections}")
    image_ids = {int(entry.image_id) for entry in detections}
    limits = sorted({max_detections, 100})
    evaluator = run_cocoeval(dataset, detections, limits=limits)
    limit, limit_100 = limits.index(max_detections), limits.index(100)
    precision = evaluator.eval["precision"][..., limit]  # [IoU, recall, class, area]
    truth = dataset.truth
    counted_rows = np.isin(dataset.image_ids[truth.images], list(image_ids)) & ~truth.crowd
    counted = Counter(truth.category_ids[counted_rows].tolist())
    order = [int(category_id) for category_id in evaluator.params.catIds]
    return {
        **_average_precisions(precision[..., _ALL]),
        "APs": _mean(precision[..., _SMALL]),
        "APm": _mean(precision[..., _MEDIUM]),
        "APl": _mean(precision[..., _LARGE]),
        "AR100": _mean(evaluator.eval["recall"][:, :, _ALL, limit_100]),
        "images": len(image_ids),
        "per_class": {
            name: {**_average_precisions(precision[:, :, order.index(number), _ALL]), "boxes": counted[number]}
            for name, number in zip(dataset.class_names, dataset.category_ids.tolist(), strict=True)
        },
    }


def evaluate_found(
    dataset: CocoDataset, found: dict[str, list[ImageDetections]], *, max_detections: int = 100
) -> dict[str, object]:
    """Compute metrics of what `Detector.detect_dataset` found; those of the combinations of heads go into "by_head"."""
    metrics = {name: evaluate_detections(dataset, of, max_detections=max_detections) for name, of in found.items()}
    result = metrics.pop("detections")
    if metrics:
        result["by_head"] = {name: {key: of[key] for key in METRIC_NAMES} for name, of in metrics.items()}
    return result


def coco_results(dataset: CocoDataset, detections: Sequence[ImageDetections]) -> list[dict]:
    """Convert detections to COCO's results format: category ids, and boxes as x, y, width, height.

    Args:
        dataset: gives the category id of each class and the images that exist.
        detections: see `evaluate_detections`.

    Returns:
        Dicts with image_id, category_id, bbox and score, in the order given; Python numbers only, ready for JSON.

    Raises:
        ValueError: see `evaluate_detections`.
    """
    known = set(np.asarray(dataset.image_ids).tolist())
    seen: set[int] = set()
    results = []
    for entry in detections:
        image_id = int(entry.image_id)
        if image_id not in known:
            raise ValueError(
                f"image {image_id}: not in {dataset.annotations_path}, so it cannot be evaluated against it"
            )
        if image_id in seen:
            raise ValueError(f"image {image_id}: expected its detections in one entry, got two entries")
        seen.add(image_id)
        boxes, scores, classes = _checked_arrays(entry, dataset.num_classes)
        category_ids = np.asarray(dataset.category_ids)[classes].tolist()
        for box, score, category_id in zip(boxes_to_xywh(boxes).tolist(), scores.tolist(), category_ids, strict=True):
            results.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    return results


def boxes_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes [D, 4], (y1, x1, y2, x2), to COCO's (x, y, width, height), float64 [D, 4]."""
    y1, x1, y2, x2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)


def _checked_arrays(entry: ImageDetections, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays of one image as float64 boxes, float64 scores and int64 classes, or say what is wrong."""
    where = f"detections of image {entry.image_id}"
    boxes, scores, classes = (np.asarray(values) for values in (entry.boxes, entry.scores, entry.classes))
    if scores.ndim != 1 or boxes.shape != (len(scores), 4) or classes.shape != scores.shape:
        shapes = f"{list(boxes.shape)}, {list(scores.shape)}, {list(classes.shape)}"
        raise ValueError(f"{where}: expected boxes [D, 4], scores [D] and classes [D], got {shapes}")
    boxes, scores, classes = boxes.astype(np.float64), scores.astype(np.float64), classes.astype(np.int64)
    faults = {
        "finite scores": ~np.isfinite(scores),
        "finite boxes with y2 >= y1 and x2 >= x1": ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)),
        f"classes from 0 to {num_classes - 1}": (classes < 0) | (classes >= num_classes),
    }
    for expected, wrong in faults.items():
        if wrong.any():
            row = int(np.argmax(wrong))
            got = f"box {boxes[row].tolist()}, score {scores[row]}, class {classes[row]}"
            raise ValueError(f"{where}: expected {expected}, got {got} in row {row}")
    return boxes, scores, classes


def run_cocoeval(
    dataset: CocoDataset,
    detections: Sequence[ImageDetections],
    *,
    limits: Sequence[int],
    ious: Sequence[float] | None = None,
    by_image: bool = False,
) -> COCOeval | faster_coco_eval.COCOeval_faster:
    """Match and accumulate; progress messages are dropped.

    Args:
        dataset, detections: see `evaluate_detections`.
        limits: rising numbers of best detections per image and class to look at.
        ious: thresholds; None takes COCO's ten.
        by_image: whether `evalImgs` is wanted too, which only pycocotools fills in.

    Returns:
        The evaluator with `eval` filled in; its categories are sorted by id.
    """
    results = coco_results(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        tree = dataset.coco_tree()
        kind, evaluate = (COCO, COCOeval) if by_image else (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)
        evaluator = evaluate(_index(kind, tree, tree["annotations"]), _index(kind, tree, results), "bbox")
        evaluator.params.imgIds = [int(entry.image_id) for entry in detections]
        evaluator.params.catIds = [int(category_id) for category_id in dataset.category_ids]
        evaluator.params.maxDets = list(limits)
        if ious is not None:
            evaluator.params.iouThrs = np.array(ious)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _index(kind: type, ground_truth: dict, annotations: list[dict]) -> COCO | faster_coco_eval.COCO:
    """Build a COCO object of a library in memory.

    Annotations are copied, because COCOeval writes into them. They are numbered from 1, because it stores the id of
    a match and takes 0 for "no match", and because two annotations with one id would become one.
    """
    coco = kind()
    numbered = [
        {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, **row, "id": number}
        for number, row in enumerate(annotations, start=1)
    ]
    coco.dataset = {**ground_truth, "annotations": numbered}
    coco.createIndex()
    return coco


def _average_precisions(precision: np.ndarray) -> dict[str, float | None]:
    """AP over all thresholds and at two of them, from precisions [IoU, ...]."""
    return {"AP": _mean(precision), "AP50": _mean(precision[_IOU_50]), "AP75": _mean(precision[_IOU_75])}


def _mean(values: np.ndarray) -> float | None:
    """Average what is defined; pycocotools marks the rest with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def check_ground_truth(dataset: CocoDataset) -> None:
    """Evaluate the ground truth as if it had been detected, which must give an AP of 1.

    Run this before training: it finds category ids, image ids and boxes that do not fit together while it is cheap.
    Detections are clipped to the image, so annotated boxes that reach beyond it are clipped for this check too.

    Args:
        dataset: the dataset that will be evaluated on; its crowds are not fed as detections.

    Raises:
        DataError: when AP is 0.99 or less, or when there is no box to evaluate on.
    """
    detections = [
        ImageDetections(
            boxes=dataset.boxes_of(index),
            scores=np.ones(len(dataset.boxes_of(index)), np.float32),
            classes=dataset.classes_of(index),
            known=dataset.categories,
            image_id=image_id,
        )
        for index, image_id in enumerate(dataset.image_ids.tolist())
    ]
    most = max(map(len, detections), default=0)
    clipped = replace(dataset, truth=_clipped(dataset.truth, dataset.sizes))
    metrics = evaluate_detections(clipped, detections, max_detections=max(100, most))
    ap = metrics["AP"]
    if ap is None:
        raise DataError(f"{dataset.annotations_path}: has no boxes to evaluate on; give a file with annotated objects")
    if ap <= 0.99:
        rated = {name: row["AP"] for name, row in metrics["per_class"].items() if row["AP"] is not None}
        name, worst = min(rated.items(), key=lambda pair: pair[1])
        raise DataError(
            f"{dataset.annotations_path}: its own boxes, evaluated as detections, get AP {ap:.3f} instead of 1 (worst "
            f"class: {name}, {worst:.3f}); check its ids, boxes and areas with dh-keras inspect-data"
        )


def _clipped(truth: TruthBoxes, sizes: np.ndarray) -> TruthBoxes:
    """Copy the ground truth with its boxes cut to their images."""
    start, end = truth.xywh[:, :2], truth.xywh[:, :2] + truth.xywh[:, 2:]
    start, end = np.maximum(start, 0), np.minimum(end, sizes[truth.images, ::-1])
    return replace(truth, xywh=np.concatenate([start, end - start], axis=1))


def format_table(metrics: dict) -> str:
    """Lay the result of `evaluate_detections` out for the terminal; n/a stands for a number that is not defined.

    Args:
        metrics: what `evaluate_detections` returned.

    Returns:
        Lines without a newline at the end: the totals, then one line per class in class order.
    """
    names, per_class = class_labels([*metrics["per_class"]]), metrics["per_class"].values()
    by_head = metrics.get("by_head", {})
    lines = [f"{_totals(metrics)}  ({metrics['images']} images)"]
    width = max(map(len, ["class", *names]))
    lines.append(f"{'class':<{width}}  {'boxes':>7}  {'AP':>5}  {'AP50':>5}  {'AP75':>5}")
    for name, of_class in zip(names, per_class, strict=True):
        numbers = "  ".join(f"{format_number(of_class[key]):>5}" for key in ("AP", "AP50", "AP75"))
        lines.append(f"{name:<{width}}  {of_class['boxes']:>7}  {numbers}")
    if by_head:
        lines.append("by head (score/box):")
    width = max(map(len, by_head), default=0)
    lines += [f"{name:<{width}}  {_totals(of_head)}" for name, of_head in by_head.items()]
    return "\n".join(lines)


def _totals(metrics: dict) -> str:
    return "  ".join(f"{name} {format_number(metrics[name])}" for name in METRIC_NAMES)


def format_number(value: float | None) -> str:
    """Three decimals; n/a for a number that is not defined."""
    return "n/a" if value is None else f"{value:.3f}"

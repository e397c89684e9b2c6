"""What a run folder gets after training: curves, precision and recall, confusions, pictures and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dh_keras.config.schema import Config
from dh_keras.data.dataset import CocoDataset
from dh_keras.evaluation.coco_metrics import evaluate_found, format_table
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import require_writable, write_text
from dh_keras.inference.detector import ModelDetector
from dh_keras.inference.evaluation import detect_with_bar
from dh_keras.modeling.losses import loss_weights
from dh_keras.reports.confusion import confusion_counts, draw_confusion
from dh_keras.reports.curves import Row, draw_curves, read_metrics
from dh_keras.reports.examples import rank_images, write_ranked
from dh_keras.reports.matches import match_classes, match_images
from dh_keras.reports.model_card import write_model_card
from dh_keras.reports.pr_curves import class_rows, draw_pr_curves, precision_recall, write_class_rows
from dh_keras.reports.run_data import load_validation
from dh_keras.run.run_folder import METRICS_FILE, open_run
from dh_keras.run.scores import CLASSES_TABLE

PICTURE_SCORE = 0.5
CURVES_FILE, PR_FILE, CONFUSION_FILE = "curves.png", "pr_curves.png", "confusion_matrix.png"
CARD_FILE = "model_card.md"
WORST_DIR, BEST_DIR = "worst", "best"


def analyze_run(
    path: str | Path,
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    score: float = PICTURE_SCORE,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a run's weights once on its validation images and write everything about them into its folder.

    The files that it wrote before are replaced, each in one step; no other file is touched. A run without metrics.csv,
    such as a converted one, gets no curves.

    Args:
        path: the run folder.
        annotations: COCO JSON in the place of the config's validation data, for data that has moved.
        images: folder of its images.
        score: what detections must score more than in the confusion matrix and the pictures.
        overrides: `key=value` changes to the run's config.

    Returns:
        What `evaluate_detector` returns.

    Raises:
        DataError, ConfigError, WriteError: one line naming the file and what to do.
    """
    run = open_run(path, overrides)
    weights = run.weights  # raises when there are none, before anything is read
    require_writable(run.path, 0)
    metrics_file = run.path / METRICS_FILE
    history = read_metrics(metrics_file) if metrics_file.is_file() else []
    val = load_validation(run, annotations, images)
    print(f"run: {run.path}, {weights.name}\nvalidation data: {val.counts_line}")
    detector = ModelDetector.from_run(run)
    found = detect_with_bar(detector, val, batch_size=detector.batch_size)
    detections = found["detections"]
    metrics = evaluate_found(val, found, max_detections=detector.max_detections)
    print(format_table(metrics))

    _write_curves(run.path, history, run.config)
    rows = _write_classes(run.path, val, detections, metrics, detector.max_detections)
    _write_images(run.path, val, detections, score)
    card = write_model_card(
        run,
        overrides=overrides,
        parameters=detector.model.count_params(),
        val=val,
        own_data=bool(history) and annotations is None,
        metrics=metrics,
        rows=rows,
        history=history,
    )
    write_text(run.path / CARD_FILE, card)
    written = [CURVES_FILE] * bool(history) + [PR_FILE, CONFUSION_FILE, CLASSES_TABLE, CARD_FILE]
    print(f"written into {run.path}: {', '.join(written)}, {WORST_DIR}/, {BEST_DIR}/")
    return metrics


def _write_curves(folder: Path, history: Sequence[Row], config: Config) -> None:
    if not history:
        print(f"{folder}: has no {METRICS_FILE}, so no {CURVES_FILE} is drawn; only training writes it")
        return
    weights = loss_weights(vars(config.model.loss_weights))
    steps_per_epoch = history[-1]["step"] / history[-1]["epoch"]
    unit = 1 if config.train.steps is None else steps_per_epoch
    draw_curves(folder / CURVES_FILE, history, weights, [drop / unit for drop in config.train.drops])


def _write_classes(
    folder: Path, val: CocoDataset, detections: Sequence[ImageDetections], metrics: dict[str, Any], limit: int
) -> list[dict[str, Any]]:
    """Draw precision and recall, and return the rows of the table of classes."""
    curves = {
        iou: [precision_recall(of_class) for of_class in match_classes(val, detections, iou=iou, max_detections=limit)]
        for iou in (0.5, 0.75)
    }
    draw_pr_curves(folder / PR_FILE, curves, metrics, val.class_names)
    rows = class_rows(metrics, curves[0.5], [category.id for category in val.categories])
    write_class_rows(folder / CLASSES_TABLE, rows)
    return rows


def _write_images(folder: Path, val: CocoDataset, detections: Sequence[ImageDetections], score: float) -> None:
    matches = match_images(val, detections, score=score)
    draw_confusion(folder / CONFUSION_FILE, confusion_counts(matches, val.num_classes), val.class_names, score=score)
    for name, indices in zip((WORST_DIR, BEST_DIR), rank_images(matches), strict=True):
        write_ranked(folder / name, indices, val, matches, score=score)

"""Precision against recall of every class, and the score at which F1 is highest."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dh_keras.evaluation.coco_metrics import format_number
from dh_keras.files import replaced_text
from dh_keras.reports.matches import ClassMatches
from dh_keras.reports.plotting import GREY, line_colors, new_figure, plain_labels, save_figure, style_panel

# More lines than this cannot be told apart: the best and the worst half of so many are coloured, the others are grey.
MAX_COLORED = 12
COLUMNS = ("class", "category_id", "boxes", "AP", "AP50", "AP75", "best_f1", "score", "precision", "recall")


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of the detections that score at least so much, for every score that occurs.

    Args:
        scores: float64 [S], falling.
        precision: float64 [S] in 0..1.
        recall: float64 [S] in 0..1, rising.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """float64 [S], harmonic mean of precision and recall."""
        return 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-12)

    @property
    def best(self) -> int | None:
        """Where F1 is highest, or None where nothing was found."""
        return int(np.argmax(self.f1)) if self.recall.any() else None


def precision_recall(matches: ClassMatches) -> Curve | None:
    """Count what is right among the best 1, 2, 3, ... detections; None for a class without boxes."""
    if not matches.boxes:
        return None
    last_of_score = np.flatnonzero(np.diff(matches.scores, append=-np.inf))
    correct = np.cumsum(matches.correct)[last_of_score]
    return Curve(matches.scores[last_of_score], correct / (last_of_score + 1), correct / matches.boxes)


def draw_pr_curves(
    path: Path, curves: dict[float, Sequence[Curve | None]], metrics: dict[str, Any], class_names: Sequence[str]
) -> None:
    """Draw a panel for each IoU, as COCO integrates it: the best precision at this recall or a higher one.

    Args:
        path: the PNG file.
        curves: {0.5: one per class, 0.75: one per class}.
        metrics: what `evaluate_detections` returned, for the AP in the legends.
        class_names: K names.
    """
    beside = sum(curve is not None for curve in curves[0.5]) > MAX_COLORED // 2  # the legend covers too much inside
    figure = new_figure(15 if beside else 12, 5.4, "Precision and recall by class (validation images)")
    for axes, (iou, of_classes) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        key = f"AP{round(iou * 100)}"
        aps = [metrics["per_class"][name][key] for name in class_names]
        _draw_panel(axes, of_classes, aps, plain_labels(class_names))
        title = f"IoU at least {iou}: mean {key} {format_number(metrics[key])}"
        style_panel(axes, title=title, x="recall", y="precision")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.03))
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {"loc": "lower left"}
        axes.legend(fontsize=8, framealpha=0.85, **place)
    save_figure(figure, path)


def _draw_panel(axes: Axes, curves: Sequence[Curve | None], aps: Sequence[float | None], names: Sequence[str]) -> None:
    drawn = sorted((index for index, curve in enumerate(curves) if curve is not None), key=lambda k: -aps[k])
    half = MAX_COLORED // 2
    colored = drawn if len(drawn) <= MAX_COLORED else drawn[:half] + drawn[-half:]
    palette = line_colors(min(len(curves), MAX_COLORED))
    colors = {k: palette[k if len(curves) <= MAX_COLORED else i] for i, k in enumerate(colored)}
    for k in sorted(drawn, key=lambda k: k in colors):
        recall, precision = _as_integrated(curves[k])
        label = f"{names[k]} {aps[k]:.3f}" if k in colors else None
        axes.plot(recall, precision, color=colors.get(k, GREY), linewidth=1.8 if k in colors else 0.8, label=label)
        best = curves[k].best
        if k in colors and best is not None:
            axes.plot(curves[k].recall[best], curves[k].precision[best], "o", color=colors[k], markersize=5)
    if not any(curve.recall.any() for curve in curves if curve is not None):
        axes.text(0.5, 0.5, "no detection is right", ha="center", va="center", fontsize=11, color="0.35")
    axes.plot([], [], "o", color="0.3", markersize=5, label="best F1")
    if len(drawn) > len(colored):
        axes.plot([], [], color=GREY, linewidth=0.8, label=f"{len(drawn) - len(colored)} classes between")


def _as_integrated(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The staircase under which the area is AP, from recall 0 to where recall ends, then down to 0."""
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    recall = np.concatenate([[0.0], np.repeat(curve.recall, 2)])
    precision = np.concatenate([np.repeat(envelope, 2), [0.0]])
    return recall, precision


def class_rows(
    metrics: dict[str, Any], curves: Sequence[Curve | None], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """One row of `COLUMNS` per class; score, precision and recall at the best F1 (IoU 0.5), None if not defined."""
    rows = []
    for (name, of_class), curve, number in zip(metrics["per_class"].items(), curves, category_ids, strict=True):
        row = {"class": name, "category_id": int(number), **of_class}
        row |= dict.fromkeys(("best_f1", "score", "precision", "recall"))
        if curve is not None and curve.best is not None:
            best = curve.best
            row |= {"best_f1": curve.f1[best], "score": curve.scores[best]}
            row |= {"precision": curve.precision[best], "recall": curve.recall[best]}
        rows.append({key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()})
    return rows


def write_class_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as CSV; what is not defined stays empty."""
    with replaced_text(path) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})

"""The confusion matrix of a detector: classes against each other, and against the background."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from dh_keras.reports.matches import MATCH_IOU, ImageMatches
from dh_keras.reports.plotting import new_figure, plain_labels, save_figure

BACKGROUND = "background"
MAX_WRITTEN = 25  # with more classes the cells are too small for numbers
MAX_DRAWN = 60  # classes; of more, those with the most boxes


def confusion_counts(matches: Sequence[ImageMatches], num_classes: int) -> np.ndarray:
    """Count what was found as what.

    Args:
        matches: one entry per image.
        num_classes: K.

    Returns:
        int64 [K + 1, K + 1]: rows are what is there, columns what was detected; the last row counts detections where
        nothing is (or where a better one was before), the last column boxes that nothing found.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for of_image in matches:
        there = np.append(of_image.gt_classes, num_classes)
        np.add.at(counts, (there[of_image.found], of_image.classes), 1)
        np.add.at(counts, (of_image.gt_classes[of_image.finder < 0], num_classes), 1)
    return counts


def normalise_rows(counts: np.ndarray) -> np.ndarray:
    """Divide every row by its sum, float64 [K + 1, K + 1]; rows without a count stay zero."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def draw_confusion(path: Path, counts: np.ndarray, class_names: Sequence[str], *, score: float) -> None:
    """Draw counts and shares beside each other.

    Args:
        path: the PNG file.
        counts: see `confusion_counts`.
        class_names: K names.
        score: what the detections scored more than, for the title.
    """
    title = f"Detections that score more than {score:g}, at IoU {MATCH_IOU}"
    shares = normalise_rows(counts)
    names = plain_labels([*class_names, BACKGROUND])
    if len(class_names) > MAX_DRAWN:
        kept = np.append(np.sort(np.argsort(-counts[:-1].sum(axis=1), kind="stable")[:MAX_DRAWN]), len(class_names))
        counts, shares, names = counts[np.ix_(kept, kept)], shares[np.ix_(kept, kept)], [names[k] for k in kept]
        title += f"; the {MAX_DRAWN} classes with the most boxes"
    cells = (0.55 if len(names) <= MAX_WRITTEN else 0.2) * len(names)
    room = 0.8 + 0.08 * max(map(len, names))  # for the names, in inches
    figure = new_figure(2 * max(4.0, cells + room), max(4.0, cells + room) + 0.5, title)
    left, right = figure.subplots(1, 2)
    shades = np.log1p(counts) / max(float(np.log1p(counts).max()), 1e-9)  # rare confusions show too
    _draw_matrix(left, "counts", shades, counts, "d", names)
    _draw_matrix(right, "share of the row", shares, shares, ".2f", names)
    save_figure(figure, path)


def _draw_matrix(
    axes: Axes, title: str, shades: np.ndarray, numbers: np.ndarray, form: str, names: Sequence[str]
) -> None:
    count = len(names)
    axes.set_title(title, fontsize=10, loc="left")
    shown = shades.astype(np.float64)
    shown[-1, -1] = np.nan  # how much nothing was found where nothing is has no number
    axes.imshow(shown, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    small = count > MAX_WRITTEN
    axes.set_xticks(range(count), names, rotation=90 if small or count > 6 else 30, ha="center" if small else "right")
    axes.set_yticks(range(count), names)
    axes.tick_params(labelsize=6 if small else 9)
    axes.set_xlabel(f"detected as ({BACKGROUND}: missed)", fontsize=9)
    axes.set_ylabel(f"annotated as ({BACKGROUND}: false detections)", fontsize=9)
    axes.axhline(count - 1.5, color="0.5", linewidth=0.8)
    axes.axvline(count - 1.5, color="0.5", linewidth=0.8)
    for (row, column), number in np.ndenumerate(numbers):
        if not small and np.isfinite(shown[row, column]):
            ink = "white" if shown[row, column] > 0.6 else "black"
            axes.text(column, row, format(number, form), ha="center", va="center", fontsize=9, color=ink)

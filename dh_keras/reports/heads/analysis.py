"""The paper's comparison of fc-head and conv-head (section 3): from models and annotated images to numbers and figures.

Letters: M windows, G objects.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.pipeline import image_dataset
from dh_keras.errors import DataError
from dh_keras.evaluation.coco_metrics import format_number
from dh_keras.files import filled_folder, require_new_folder, require_writable, write_json
from dh_keras.paths import to_path
from dh_keras.reports.heads.charts import draw_figures
from dh_keras.reports.heads.probe import CELLS, HeadProbe, open_comparable_runs
from dh_keras.reports.heads.sliding_windows import IOU_BINS, sliding_windows
from dh_keras.reports.heads.statistics import (
    MeanCorrelation,
    bin_statistics,
    describe_correlation,
    finite_mean,
    mean_and_error,
    pearson_by_object,
    size_masks,
)

KINDS = ("fc", "conv")
OUTPUT_DIR = "heads"
NUMBERS_FILE = "heads.json"
_OUTPUT_BYTES = 2_000_000


@dataclass(frozen=True, eq=False)
class HeadMeasurements:
    """What the heads said.

    Args:
        areas: float64 [G], of the objects, square pixels of the original image.
        object_index: int64 [M], object of each window, 0..G-1.
        ious: float32 [M], of window and object.
        scores: for "fc" and "conv" float32 [M], of the object's class.
        box_ious: for "fc" and "conv" float32 [M], of regressed box and object.
        feature_correlation: for "fc" and "conv" float64 [49, 49], see `HeadProbe.cell_maps`; over the objects.
        weight_correlation: for "fc" and "conv", see `HeadProbe.weight_correlations`.
        images: number of images with objects.
        outside, nearer_another: windows left out, see `Windows`.
        windows_per_second: windows through both heads, with everything else that the measurement takes.
    """

    areas: np.ndarray
    object_index: np.ndarray
    ious: np.ndarray
    scores: dict[str, np.ndarray]
    box_ious: dict[str, np.ndarray]
    feature_correlation: dict[str, np.ndarray]
    weight_correlation: dict[str, np.ndarray]
    images: int
    outside: int
    nearer_another: int
    windows_per_second: float


def analyze_heads(
    models: Sequence[str | Path],
    *,
    annotations: str | Path,
    images: str | Path,
    output: str | Path | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
) -> tuple[dict[str, Any], Path]:
    """Compare the heads, and write `heads.json` and a figure for each question.

    Args:
        models: a double_head_ext run, or a single_fc and a single_conv run in any order.
        annotations: COCO JSON.
        images: folder of its images.
        output: a folder, new or empty; None takes `heads` in the first run, and replaces its own files there.
        limit: only the first images that have objects, this many; None takes all.
        overrides: `key=value` changes to the config of each run.

    Returns:
        What is in `heads.json` (see `summarize_heads`), and the folder.

    Raises:
        DataError: for wrong models, data without objects, an output folder that is not empty, or a limit below 1.
        WriteError: when the disk does not take the output; nothing has been measured then.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit: expected at least 1 image, got {limit}")
    runs = open_comparable_runs(models, overrides)
    folder = runs[0].path / OUTPUT_DIR if output is None else to_path(output)
    if output is not None:
        require_new_folder(folder)
    require_writable(folder, _OUTPUT_BYTES)
    dataset = load_coco(annotations, images, categories=runs[0].categories)
    print(f"data: {dataset.summary()}")
    indices = np.flatnonzero(np.diff(dataset.box_offsets) > 0)[:limit]
    if not len(indices):
        raise DataError(f"annotations {dataset.annotations_path}: no box to look at; is this the right file?")
    probes = [HeadProbe(run) for run in runs]
    measured = measure_heads(probes, dataset, indices)
    results = {
        "models": {kind: str(probe.run.path) for probe in probes for kind in probe.kinds},
        "annotations": str(annotations),
        **summarize_heads(measured),
    }
    with filled_folder(folder) as partial:
        draw_figures(partial, results, measured.feature_correlation, measured.weight_correlation)
        write_json(partial / NUMBERS_FILE, results)
    return results, folder


def measure_heads(probes: Sequence[HeadProbe], dataset: CocoDataset, indices: np.ndarray) -> HeadMeasurements:
    """Run the windows of every object through the heads.

    Args:
        probes: with one fc-head and one conv-head between them.
        dataset: loaded with their categories.
        indices: of images that have objects.
    """
    correlations = {kind: MeanCorrelation(CELLS) for kind in KINDS}
    windows, answers, started = [], {kind: [] for kind in KINDS}, time.perf_counter()
    for index, image in tqdm(image_dataset(dataset, indices).as_numpy_iterator(), total=len(indices), unit="image"):
        boxes, classes = dataset.boxes_of(index), dataset.classes_of(index)
        windows.append(sliding_windows(boxes, classes, image.shape[:2]))
        own = windows[-1].object_index
        for probe in probes:
            features = probe.open_image(image)
            for kind, answer in probe.judge(features, windows[-1].boxes, boxes[own], classes[own]).items():
                answers[kind].append(answer)
            for kind, cells in probe.cell_maps(features, boxes).items():
                correlations[kind].add(cells)
    seconds = time.perf_counter() - started
    joined = {kind: np.concatenate(of_images, axis=1) for kind, of_images in answers.items()}
    objects = [dataset.boxes_of(index) for index in indices]
    first_object = np.cumsum([0, *map(len, objects)])
    boxes = np.concatenate(objects).astype(np.float64)
    return HeadMeasurements(
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        object_index=np.concatenate([w.object_index + n for w, n in zip(windows, first_object[:-1], strict=True)]),
        ious=np.concatenate([w.ious for w in windows]),
        scores={kind: joined[kind][0] for kind in KINDS},
        box_ious={kind: joined[kind][1] for kind in KINDS},
        feature_correlation={kind: correlations[kind].mean() for kind in KINDS},
        weight_correlation={kind: matrix for probe in probes for kind, matrix in probe.weight_correlations().items()},
        images=len(indices),
        outside=sum(w.outside for w in windows),
        nearer_another=sum(w.nearer_another for w in windows),
        windows_per_second=joined["fc"].shape[1] / seconds,
    )


def summarize_heads(measured: HeadMeasurements) -> dict[str, Any]:
    """Numbers of the section, ready for JSON; None stands where there is nothing to measure on.

    Returns:
        images, objects, windows, windows_left_out, windows_per_second; iou_bins (their edges); by_size {all, small,
        medium, large: {objects, windows_per_bin, pearson_fc_minus_conv {mean, standard_error} (over the objects that
        have both), and for fc and conv: pearson, pearson_std (over the objects), constant_scores (objects left out of
        these two because IoU or score never vary), score_mean, score_std, box_iou_mean, box_iou_std (per bin)}};
        feature_correlation and weight_correlation, see `describe_correlation`.
    """
    pearson = {
        kind: pearson_by_object(measured.ious, scores, measured.object_index, num_objects=len(measured.areas))
        for kind, scores in measured.scores.items()
    }
    sizes = size_masks(measured.areas)
    correlations = ("feature_correlation", "weight_correlation")
    return {
        "images": measured.images,
        "objects": len(measured.areas),
        "windows": len(measured.ious),
        "windows_left_out": {"outside": measured.outside, "nearer_another": measured.nearer_another},
        "windows_per_second": round(measured.windows_per_second),
        "iou_bins": np.linspace(0, 1, IOU_BINS + 1).round(6).tolist(),
        "by_size": {name: _summarize_objects(measured, pearson, mask) for name, mask in sizes.items()},
        **{
            name: {kind: describe_correlation(matrix) for kind, matrix in getattr(measured, name).items()}
            for name in correlations
        },
    }


def _summarize_objects(measured: HeadMeasurements, pearson: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """The numbers of the objects in a mask bool [G]."""
    windows = mask[measured.object_index]
    ious = measured.ious[windows]
    summary: dict[str, Any] = {
        "objects": int(mask.sum()),
        "pearson_fc_minus_conv": mean_and_error(pearson["fc"][mask] - pearson["conv"][mask]),
    }
    for kind in KINDS:
        count, score_mean, score_std = bin_statistics(ious, measured.scores[kind][windows], bins=IOU_BINS)
        _, box_iou_mean, box_iou_std = bin_statistics(ious, measured.box_ious[kind][windows], bins=IOU_BINS)
        own = pearson[kind][mask]
        varying = own[np.isfinite(own)]
        summary["windows_per_bin"] = count.tolist()
        summary[kind] = {
            "pearson": finite_mean(own),
            "pearson_std": float(varying.std()) if len(varying) else None,
            "constant_scores": len(own) - len(varying),
            "score_mean": _without_nan(score_mean),
            "score_std": _without_nan(score_std),
            "box_iou_mean": _without_nan(box_iou_mean),
            "box_iou_std": _without_nan(box_iou_std),
        }
    return summary


def _without_nan(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def format_heads(results: dict[str, Any]) -> str:
    """A table of the correlations by size, one of the bins of IoU, and one of the correlations between cells."""
    left_out = results["windows_left_out"]
    lines = [
        f"{results['objects']} objects in {results['images']} images, {results['windows']} windows, "
        f"{results['windows_per_second']} windows/s",
        f"left out: {left_out['outside']} windows outside the image, {left_out['nearer_another']} on another object",
        _row("score ~ IoU, Pearson", "objects", "fc", "conv", "fc - conv", "std. error", "constant fc", "conv"),
    ]
    for name, row in results["by_size"].items():
        difference = row["pearson_fc_minus_conv"]
        pearson, constant = ([row[kind][key] for kind in KINDS] for key in ("pearson", "constant_scores"))
        lines.append(_row(name, row["objects"], *pearson, difference["mean"], difference["standard_error"], *constant))
    lines.append(_row("IoU of the window", "windows", "score fc", "conv", "box IoU fc", "conv"))
    everything, edges = results["by_size"]["all"], results["iou_bins"]
    for index, count in enumerate(everything["windows_per_bin"]):
        means = [everything[kind][key][index] for key in ("score_mean", "box_iou_mean") for kind in KINDS]
        lines.append(_row(f"{edges[index]:.2f} to {edges[index + 1]:.2f}", count, *means))
    lines.append(_row("between cells, Pearson", "", "fc", "conv"))
    for name in ("feature", "weight"):
        for key in ("all_pairs", "neighbours"):
            correlations = (results[f"{name}_correlation"][kind][key] for kind in KINDS)
            lines.append(_row(f"{name}s, {key.replace('_', ' ')}", "", *correlations))
    return "\n".join(lines)


def _row(label: str, count: int | str, *cells: str | float | None) -> str:
    texts = (cell if isinstance(cell, str | int) else format_number(cell) for cell in cells)
    return f"{label:<24}{count:>8}" + "".join(f"{text:>12}" for text in texts)

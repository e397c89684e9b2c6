"""Sliding windows around every object of a dataset, run through an fc-head and a conv-head.

Letters: M windows, G objects.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.errors import DataError
from dh_keras.reports.heads.probe import CELLS, HeadProbe
from dh_keras.reports.heads.sliding_windows import sliding_windows
from dh_keras.reports.heads.statistics import MeanCorrelation

KINDS = ("fc", "conv")


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


def images_with_objects(dataset: CocoDataset, *, limit: int | None = None) -> np.ndarray:
    """Indices of the first images that have objects, `limit` of them or all.

    Raises:
        DataError: when there is none.
    """
    indices = np.flatnonzero(np.diff(dataset.box_offsets) > 0)[:limit]
    if not len(indices):
        raise DataError(f"annotations {dataset.annotations_path}: no box to look at; is this the right file?")
    return indices


def measure_heads(probes: Sequence[HeadProbe], dataset: CocoDataset, indices: np.ndarray) -> HeadMeasurements:
    """Run the windows of every object through the heads.

    Args:
        probes: with one fc-head and one conv-head between them.
        dataset: loaded with their categories.
        indices: of `images_with_objects`.
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

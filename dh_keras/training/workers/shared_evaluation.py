"""Evaluation by all workers: each detects in its share of the images, the chief computes AP and tells the others.

Letters: D detections of all images of a share.
"""

import contextlib
import io
from collections.abc import Sequence

import keras
import numpy as np

from dh_keras.config.schema import Config
from dh_keras.data.dataset import CocoDataset
from dh_keras.errors import Interrupted
from dh_keras.evaluation.coco_metrics import evaluate_detections
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import ModelDetector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.run.classes import Category
from dh_keras.training.signals import StopRequest
from dh_keras.training.workers.workers import Workers


def evaluate_together(
    detector: ModelDetector, dataset: CocoDataset, config: Config, *, workers: Workers, stop: StopRequest | None = None
) -> dict:
    """COCO metrics of the current weights, the same on every worker; all must call this.

    Args:
        detector: made from the model in training, whose weights are equal everywhere but for the moving statistics of
            "batch" norms; the chief's count.
        dataset: the images, the same on every worker.
        config: batch size and the number of detections.
        workers: who takes part.
        stop: a signal to any worker ends the evaluation on all.

    Raises:
        Interrupted: on every worker, when a signal came to any.
    """
    if workers.count > 1:
        _take_statistics_of_chief(detector.model, workers)
    found: dict[str, list[ImageDetections]] = {}
    # Who is asked to stop leaves its images, and tells the others below.
    with contextlib.suppress(Interrupted):
        found = detector.detect_dataset(
            dataset,
            batch_size=config.evaluate.batch_size,
            on_images=stop.leave_if_asked if stop else None,
            shard=(workers.index, workers.count),
        )
    if stop:
        stop.agree(workers)
        stop.leave_if_asked()
    shares = workers.gather(pack_detections(found.get("detections", [])))
    if not workers.is_chief:
        return workers.broadcast()
    by_id = {entry.image_id: entry for share in shares for entry in unpack_detections(share, dataset.categories)}
    detections = [by_id[image_id] for image_id in dataset.image_ids.tolist()]
    return workers.broadcast(evaluate_detections(dataset, detections, max_detections=config.model.max_detections))


def _take_statistics_of_chief(model: DoubleHeadRCNN, workers: Workers) -> None:
    variables = model.non_trainable_weights
    moving = {v.path: v for v in variables if v.path.endswith(("moving_mean", "moving_variance"))}
    received = workers.broadcast_bytes(
        _pack({path: keras.ops.convert_to_numpy(variable) for path, variable in moving.items()})
    )
    if not workers.is_chief:
        for path, value in _unpack(received).items():
            moving[path].assign(value)


def pack_detections(entries: Sequence[ImageDetections]) -> bytes:
    """Detections as the bytes of a NumPy archive."""
    counts = np.array([len(entry) for entry in entries], np.int64)
    return _pack(
        {
            "image_ids": np.array([entry.image_id for entry in entries], np.int64),
            "counts": counts,
            "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(entry.boxes for entry in entries)]),
            "scores": np.concatenate([np.zeros(0, np.float32), *(entry.scores for entry in entries)]),
            "classes": np.concatenate([np.zeros(0, np.int32), *(entry.classes for entry in entries)]),
        }
    )


def unpack_detections(data: bytes, known: tuple[Category, ...]) -> list[ImageDetections]:
    """What `pack_detections` packed; `known` are the classes, which are not part of it."""
    arrays = _unpack(data)
    ends = np.cumsum(arrays["counts"])
    parts = [slice(end - count, end) for end, count in zip(ends, arrays["counts"], strict=True)]
    return [
        ImageDetections(
            **{name: arrays[name][part] for name in ("boxes", "scores", "classes")}, known=known, image_id=image_id
        )
        for image_id, part in zip(arrays["image_ids"].tolist(), parts, strict=True)
    ]


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as archive:  # without pickle: arrays only
        return dict(archive)

"""COCO metrics of a detector on a dataset."""

from typing import Any

from tqdm import tqdm

from dh_keras.data.dataset import CocoDataset
from dh_keras.evaluation.coco_metrics import evaluate_found
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector


def detect_with_bar(detector: Detector, dataset: CocoDataset, *, batch_size: int) -> dict[str, list[ImageDetections]]:
    """Detect in a dataset with every combination of the heads there is, see `Detector.detect_dataset`."""
    with tqdm(total=len(dataset), unit="image", desc="evaluating") as bar:
        return detector.detect_dataset(dataset, batch_size=batch_size, by_head=True, on_images=bar.update)


def evaluate_detector(detector: Detector, dataset: CocoDataset, *, batch_size: int = 1) -> dict[str, Any]:
    """COCO metrics of a detector on a dataset, for every combination of the heads if it has all four outputs.

    Args:
        detector: a loaded detector.
        dataset: loaded with the detector's categories, or some of them.
        batch_size: images of equal size that go through the network together.

    Returns:
        What `evaluate_detections` does, and "by_head": {name of the combination: AP, AP50, ...} where it applies.
    """
    found = detect_with_bar(detector, dataset, batch_size=batch_size)
    found = {name: [entry.among(dataset.categories) for entry in of] for name, of in found.items()}
    return evaluate_found(dataset, found, max_detections=detector.max_detections)

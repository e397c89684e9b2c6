"""One evaluation of a few images before training, so that what fails there does not fail hours later."""

from dataclasses import replace

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.evaluation.coco_metrics import evaluate_detections
from dh_keras.inference.detector import Detector


def check_evaluation(detector: Detector, dataset: CocoDataset, *, count: int, max_detections: int) -> dict[str, object]:
    """Detect in the first images of a dataset and compute their metrics; nothing is changed or written.

    Args:
        detector: with the weights that training begins with.
        dataset: the validation images.
        count: how many of them.
        max_detections: see `evaluate_detections`.

    Returns:
        The metrics, which are worth nothing before training.
    """
    images = image_dataset(dataset, range(min(count, len(dataset)))).as_numpy_iterator()
    found = [replace(detector(image), image_id=int(dataset.image_ids[index])) for index, image in images]
    metrics = evaluate_detections(dataset, found, max_detections=max_detections)
    print(f"evaluation works: {len(found)} validation images, {sum(map(len, found))} detections")
    return metrics

"""One evaluation of a few images before training, so that what fails there does not fail hours later."""

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.evaluation.coco_metrics import ImageDetections, evaluate_detections
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
    found = []
    for index, image in image_dataset(dataset, range(min(count, len(dataset)))).as_numpy_iterator():
        result = detector(image)
        classes = detector.class_indices(result)
        found.append(ImageDetections(int(dataset.image_ids[index]), result.boxes, result.scores, classes))
    metrics = evaluate_detections(dataset, found, max_detections=max_detections)
    print(f"evaluation works: {len(found)} validation images, {sum(len(f.scores) for f in found)} detections")
    return metrics

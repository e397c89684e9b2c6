"""What is looked at before and after training: the parameters, a trial evaluation, pictures."""

from pathlib import Path

import numpy as np

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.evaluation.coco_metrics import evaluate_detections
from dh_keras.files import filled_folder
from dh_keras.inference.detector import Detector
from dh_keras.inference.drawing import class_colors, draw_boxes, draw_detections, save_picture, side_by_side
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.run.classes import class_labels

# Detections in the run folder's pictures score more than this.
PICTURE_SCORE = 0.5


def model_rows(model: DoubleHeadRCNN) -> list[tuple[str, int, int]]:
    """(part, parameters, trainable parameters) of the backbone, fpn, rpn_head and each head, then their sum."""
    parts = {name: getattr(model, name) for name in ("backbone", "fpn", "rpn_head")} | model.heads
    rows = [
        (part, layer.count_params(), sum(variable.shape.num_elements() for variable in layer.trainable_variables))
        for part, layer in parts.items()
    ]
    return [*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def format_model_table(model: DoubleHeadRCNN) -> str:
    """The rows of `model_rows` as text."""
    lines = [f"{'part':<12}{'parameters':>14}{'trainable':>14}"]
    return "\n".join([*lines, *(f"{part:<12}{all_:>14,}{some:>14,}" for part, all_, some in model_rows(model))])


def check_evaluation(detector: Detector, dataset: CocoDataset, *, count: int, batch_size: int = 1) -> dict[str, object]:
    """Evaluate a few images before training, so that what fails there does not fail hours later.

    Nothing is changed or written.

    Args:
        detector: with the weights that training begins with.
        dataset: the validation images.
        count: how many of them.
        batch_size: as in the evaluations to come.

    Returns:
        The metrics, which are worth nothing before training.
    """
    found = detector.detect_dataset(dataset, batch_size=batch_size, first=count)["detections"]
    metrics = evaluate_detections(dataset, found, max_detections=detector.max_detections)
    print(f"evaluation works: {len(found)} validation images, {sum(map(len, found))} detections")
    return metrics


def write_pictures(detector: Detector, dataset: CocoDataset, folder: Path, *, count: int) -> Path:
    """Draw detections beside the ground truth for `count` images spread over the dataset, as PNG files."""
    colors = class_colors(dataset.num_classes)
    names = class_labels(dataset.class_names)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    titles = (f"detections above {PICTURE_SCORE}", "ground truth")
    with filled_folder(folder) as partial:
        for index, image in image_dataset(dataset, chosen).as_numpy_iterator():
            drawn = draw_detections(image, detector(image), score_threshold=PICTURE_SCORE)
            truth = dataset.classes_of(index)
            expected = draw_boxes(
                image, dataset.boxes_of(index), [names[c] for c in truth], colors=[colors[c] for c in truth]
            )
            picture = side_by_side(drawn, expected, titles)
            save_picture(picture, partial / f"{Path(dataset.paths[index]).stem}.png")
    return folder

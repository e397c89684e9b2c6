"""Pictures of a run: what its detector finds, beside the ground truth."""

from pathlib import Path

import numpy as np
from PIL import Image

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset
from dh_keras.files import filled_folder
from dh_keras.inference.detector import Detector
from dh_keras.inference.drawing import class_colors, draw_boxes, draw_detections, side_by_side

# Detections in the run folder's pictures score more than this.
PICTURE_SCORE = 0.5


def write_pictures(detector: Detector, dataset: CocoDataset, folder: Path, *, count: int) -> Path:
    """Draw detections beside the ground truth for `count` images spread over the dataset, as PNG files."""
    colors = class_colors(dataset.num_classes)
    names = dataset.class_names
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    titles = (f"detections above {PICTURE_SCORE}", "ground truth")
    with filled_folder(folder) as partial:
        for index, image in image_dataset(dataset, chosen).as_numpy_iterator():
            drawn = draw_detections(image, detector(image), score_threshold=PICTURE_SCORE)
            truth = dataset.classes_of(index)
            expected = draw_boxes(
                image, dataset.boxes_of(index), [names[c] for c in truth], colors=[colors[c] for c in truth]
            )
            picture = Image.fromarray(side_by_side(drawn, expected, titles))
            picture.save(partial / f"{Path(dataset.paths[index]).stem}.png")
    return folder

"""A detector without a network, whose boxes are known: it finds areas of two colours."""

import numpy as np
import tensorflow as tf
from PIL import Image
from scipy import ndimage

from dh_keras.data.transforms import decode_image
from dh_keras.inference.detector import Detector
from dh_keras.run.classes import Category

CATEGORIES = (Category(3, "red cell"), Category(8, "platelet"))
COLORS = np.array([(200, 0, 0), (0, 0, 200)])
ROWS = 10


def find(pixels):
    """Boxes (y1, x1, y2, x2) of areas that have nearly a class's colour, the surest, which is the largest, first."""
    found = []
    for index, color in enumerate(COLORS):
        near = (np.abs(pixels.astype(int) - color) < 80).all(-1)
        for rows, columns in ndimage.find_objects(ndimage.label(near)[0]):
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            if area > 30:  # a compressed video has spots
                score = 1 - 30 / area
                found.append(((rows.start, columns.start, rows.stop, columns.stop), score, index))
    return sorted(found, key=lambda one: -one[1])


class ColorDetector(Detector):
    """Attributes: batches, the number of files or images of each call."""

    def __init__(self, best_scores=(0.5, 0.5)):
        super().__init__(
            CATEGORIES,
            serve_bytes=lambda files: self._answer([decode_image(one).numpy() for one in files]),
            serve_images=lambda images: self._answer(images.numpy()),
            max_detections=ROWS,
            size_limits=(96, 128),
            target="cpu",
        )
        self.best_scores = best_scores
        self.batches = []

    def _answer(self, images):
        self.batches.append(len(images))
        boxes, scores, classes, counts = [], [], [], []
        for pixels in images:
            found = find(pixels)[:ROWS]
            padding = ROWS - len(found)
            boxes.append([one[0] for one in found] + [[0] * 4] * padding)
            scores.append([one[1] for one in found] + [0] * padding)
            classes.append([CATEGORIES[one[2]].id for one in found] + [0] * padding)
            counts.append(len(found))
        return {
            "detection_boxes": tf.constant(boxes, tf.float32),
            "detection_scores": tf.constant(scores, tf.float32),
            "detection_classes": tf.constant(classes, tf.int32),
            "num_detections": tf.constant(counts, tf.int32),
        }


def scene(height, width, *objects):
    """Grey pixels uint8 [H, W, 3] with (class index, y1, x1, y2, x2) filled in the colour of the class."""
    pixels = np.full((height, width, 3), 120, np.uint8)
    for index, y1, x1, y2, x2 in objects:
        pixels[y1:y2, x1:x2] = COLORS[index]
    return pixels


def write_scene(path, *arguments, **options):
    pixels = scene(*arguments)
    Image.fromarray(pixels).save(path, **options)
    return pixels

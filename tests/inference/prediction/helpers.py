"""What the tests of this folder share: a detector without a network, files to detect in, and rows to compare."""

import json
import zlib

import cv2
import numpy as np
import tensorflow as tf

from dh_keras.data.transforms import decode_image
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.run.classes import Category


class FakeDetector:
    """Decodes files as a detector does; what it finds in one depends on the file's bytes only."""

    categories = (Category(1, "circle"), Category(4, "square"))
    size_limits = (96, 128)
    target = "cpu"

    def detect_files(self, files):
        for data in files:
            decode_image(tf.constant(data))
        return [self._find(data) for data in files]

    def _find(self, data):
        random = np.random.default_rng(zlib.crc32(data))
        count = int(random.integers(0, 4))
        corners = np.sort(random.uniform(0, 90, (count, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        scores = np.sort(random.random(count, np.float32))[::-1]
        classes = random.integers(0, 2, count)
        return ImageDetections(boxes=corners, scores=scores, classes=classes, known=self.categories)


def write_video(path, frames, rate=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()


def read_rows(folder):
    return json.loads((folder / "predictions.json").read_text())


def assert_rows_agree(ours, theirs, atol=1e-3):
    """The same files and, up to rounding, the same detections."""
    assert [row["file"] for row in ours] == [row["file"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert (row["width"], row["height"]) == (other["width"], other["height"])
        for name in ("score", "box"):
            values = [[one[name] for one in rows["detections"]] for rows in (row, other)]
            np.testing.assert_allclose(values[0], values[1], atol=atol)

"""An exported SavedModel as a detector, and what every export says of itself."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.inference.detector import Detector
from dh_keras.inference.serving_module import LABELS_FILE, SIGNATURE_FILE
from dh_keras.paths import local_folder
from dh_keras.run.classes import read_classes
from dh_keras.run.scores import scores_of


class SavedModelDetector(Detector):
    """What `export_saved_model` wrote.

    Args:
        path: the folder.

    Raises:
        DataError: when it is another SavedModel, or damaged.
    """

    def __init__(self, path: Path):
        try:
            with local_folder(path) as folder:
                self._loaded = tf.saved_model.load(str(folder))  # its functions need it
            from_bytes = self._loaded.signatures["serving_default"]
            from_images = self._loaded.signatures["serve_image"]
            settings, best = read_description(path)
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise DataError(
                f"{path}: not a SavedModel that this package exported: {str(error).splitlines()[0]}"
            ) from error
        super().__init__(
            read_classes(path / "assets" / LABELS_FILE),
            serve_bytes=lambda image_bytes: from_bytes(image_bytes=image_bytes),
            serve_images=lambda images: from_images(images=images),
            **settings,
        )
        self.path = path
        self.best_scores = scores_of(self.categories, best)


def read_description(path: Path) -> tuple[dict[str, Any], dict[int, float]]:
    """From what an export says of itself, settings of a `Detector`, and each class's score to show, by id.

    Raises:
        OSError, KeyError, ValueError: when it is missing or damaged.
    """
    description = json.loads((path / "assets" / SIGNATURE_FILE).read_text(encoding="utf-8"))
    settings = {
        "max_detections": description["max_detections"],
        "size_limits": (description["preprocessing"]["min_size"], description["preprocessing"]["max_size"]),
        "target": description.get("target", "cpu"),  # before there were targets, canvases were those of a CPU
    }
    return settings, {int(number): float(score) for number, score in description.get("best_scores", {}).items()}

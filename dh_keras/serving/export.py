"""The SavedModel of a detector: TensorFlow Serving's numbered folder, its assets and its warm-up requests."""

from pathlib import Path

import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.files import new_folder, require_absent, write_json
from dh_keras.inference.detector import Detector, ModelDetector
from dh_keras.inference.serving_module import LABELS_FILE, SIGNATURE_FILE
from dh_keras.run.classes import write_classes
from dh_keras.serving.warmup import warmup_requests, write_warmup_requests

_CHOOSE_NEXT = "choose the next version number"


def export_saved_model(detector: Detector, output: str | Path) -> Path:
    """Write a SavedModel with the signatures `serving_default` (image_bytes) and `serve_image` (images).

    It holds stock TensorFlow operations only and is loaded by `tf.saved_model.load` without this package or Keras. It
    is written beside its place and moved there when it is complete.

    Args:
        detector: of a run folder or of a model; what is a SavedModel already cannot be exported.
        output: the versioned folder, such as models/cells/1; must not exist.

    Returns:
        The folder.

    Raises:
        DataError: for the detector of a SavedModel, and when the folder exists; nothing in it is touched.

    Examples:
        >>> export_saved_model(Detector.load("runs/cells"), "models/cells/1")
    """
    if not isinstance(detector, ModelDetector):
        raise DataError(f"{detector.path}: is a SavedModel already; export takes a run folder")
    module, output = detector.module, Path(output)
    require_absent(output, _CHOOSE_NEXT)
    if not output.name.isdigit():
        raise DataError(f"{output}: TensorFlow Serving wants a numbered folder; use {output / '1'}")
    with new_folder(output, _CHOOSE_NEXT) as folder:
        signatures = {
            "serving_default": module.serve_bytes.get_concrete_function(),
            "serve_image": module.serve_images.get_concrete_function(),
        }
        tf.saved_model.save(module, str(folder), signatures=signatures)
        write_classes(folder / "assets" / LABELS_FILE, detector.categories)
        write_json(folder / "assets" / SIGNATURE_FILE, module.describe())
        write_warmup_requests(folder, warmup_requests())
    return output

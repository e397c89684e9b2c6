"""The served model: preprocessing, detector and postprocessing as one graph, and its SavedModel.

Run folders and SavedModels are used through the same functions, so they give the same detections.
Letters: B batch, D detections, H W C.
"""

import json
import os
import shutil
from pathlib import Path

import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.inference.serving_module import ServingModule
from dh_keras.run.classes import write_classes
from dh_keras.serving.warmup import warmup_requests, write_warmup_requests

SIGNATURE_FILE = "signature.json"
LABELS_FILE = "labels.json"


def export_saved_model(module: ServingModule, output: str | Path) -> Path:
    """Write a SavedModel with the signatures `serving_default` (image_bytes) and `serve_image` (images).

    It holds stock TensorFlow operations only and is loaded by `tf.saved_model.load` without this package or Keras. It
    is written beside its place and moved there when it is complete.

    Args:
        module: what to serve.
        output: the versioned folder, such as models/cells/1; must not exist.

    Returns:
        The folder.

    Raises:
        DataError: when the folder exists; nothing in it is touched.

    Examples:
        >>> export_saved_model(Detector.load("runs/cells").serving, "models/cells/1")
    """
    output = Path(output)
    if output.exists():
        raise DataError(f"{output}: exists already and is not overwritten; choose the next version number")
    if not output.name.isdigit():
        raise DataError(f"{output}: TensorFlow Serving wants a numbered folder; use {output / '1'}")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        signatures = {
            "serving_default": module.serve_bytes.get_concrete_function(),
            "serve_image": module.serve_images.get_concrete_function(),
        }
        tf.saved_model.save(module, str(partial), signatures=signatures)
        assets = partial / "assets"
        assets.mkdir(exist_ok=True)
        write_classes(assets / LABELS_FILE, module.categories)
        (assets / SIGNATURE_FILE).write_text(json.dumps(module.describe(), indent=1), encoding="utf-8")
        write_warmup_requests(partial, warmup_requests())
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output

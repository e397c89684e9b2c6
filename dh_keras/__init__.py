"""Double-Head R-CNN for TensorFlow and Keras 3 (Wu et al., CVPR 2020, arXiv 1904.06493).

The public names are loaded when they are first used, so that a config or a dataset can be checked without TensorFlow.
"""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_config": "dh_keras.config.load",
    "build_detector": "dh_keras.pretrained.build",
    "DoubleHeadRCNN": "dh_keras.modeling.double_head_rcnn",
    "Detector": "dh_keras.inference.detector",
    "export_saved_model": "dh_keras.serving.export",
    "import_checkpoint": "dh_keras.pretrained.importer",
    "train": "dh_keras.training.loop",
}
__all__ = sorted(_PUBLIC)


def require_tensorflow_backend() -> None:
    """Refuse another backend of Keras, which would fail later and say less; a keras.json that names one is overruled.

    Raises:
        ImportError: when KERAS_BACKEND names one, or Keras was imported with one.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # goes before keras.json
    if backend != "tensorflow":
        raise ImportError(f"KERAS_BACKEND: dh_keras needs the backend tensorflow, got {backend!r}; unset the variable")
    keras_config = getattr(sys.modules.get("keras"), "config", None)
    if keras_config is not None and keras_config.backend() != "tensorflow":
        raise ImportError(
            f"Keras was imported with the backend {keras_config.backend()!r}, and dh_keras needs tensorflow; set "
            "KERAS_BACKEND=tensorflow before the first import of keras"
        )


def quiet_tensorflow() -> None:
    """Leave out what TensorFlow says when it is imported, unless TF_CPP_MIN_LOG_LEVEL asks for it.

    It reports the lack of a GPU as an error; on a machine without one that is no news.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if os.path.exists("/dev/nvidiactl") else "3")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dh_keras' has no attribute {name!r}; public names: {', '.join(__all__)}")
    require_tensorflow_backend()
    quiet_tensorflow()
    return getattr(importlib.import_module(_PUBLIC[name]), name)

"""Double-Head R-CNN for TensorFlow and Keras 3 (Wu et al., CVPR 2020, arXiv 1904.06493).

The public names are loaded when they are first used, so that a config or a dataset can be checked without TensorFlow.
So are the classes that Keras finds in a saved model, whichever of Keras and this package is imported first.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_config": "dh_keras.config.load",
    "build_detector": "dh_keras.pretrained.build",
    "DoubleHeadRCNN": "dh_keras.modeling.double_head_rcnn",
    "Detector": "dh_keras.inference.detector",
    "export_saved_model": "dh_keras.serving.export",
    "import_checkpoint": "dh_keras.pretrained.importer",
    "train": "dh_keras.reports.training",
}
__all__ = sorted(_PUBLIC)

# What a saved model may hold, by the module that registers it.
_SAVED = {
    "dh_keras.modeling.double_head_rcnn": ("DoubleHeadRCNN",),
    "dh_keras.modeling.hub_backbone": ("HubBackbone",),
    "dh_keras.modeling.layers": (
        "BoxPredictors",
        "ConvHead",
        "ConvNorm",
        "FCHead",
        "FPN",
        "FusedBatchNormalization",
        "NonLocalBlock",
        "PixelNormalization",
        "RPNHead",
        "ResNet",
        "ResidualBlock",
        "RoIAlign",
        "SyncBatchNormalization",
        "UpBlock",
    ),
    "dh_keras.modeling.optimizer": ("RecipeAdamW", "RecipeSGD"),
    "dh_keras.training.schedule": ("WarmupStepSchedule",),
}


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


def _announce(keras: ModuleType) -> None:
    """Let Keras know what to call for each class of a saved model: what imports the class, and so puts it there."""
    known = keras.saving.get_custom_objects()
    for module, names in _SAVED.items():
        for name in names:
            known.setdefault(f"dh_keras>{name}", _stand_in(module, name))


def _stand_in(module: str, name: str) -> type:
    def from_config(config: dict[str, Any]) -> Any:
        require_tensorflow_backend()
        return getattr(importlib.import_module(module), name).from_config(config)

    return type(name, (), {"from_config": staticmethod(from_config)})


class _WhenKerasComes(importlib.abc.MetaPathFinder):
    """Finds Keras as all other finders do, and makes the classes known to it as soon as it is there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec of Keras; nothing of any other module."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_announce(module: ModuleType) -> None:
                execute(module)
                _announce(module)

            spec.loader.exec_module = execute_and_announce
        return spec


if "keras" in sys.modules and hasattr(sys.modules["keras"], "saving"):
    _announce(sys.modules["keras"])
else:
    sys.meta_path.insert(0, _WhenKerasComes())

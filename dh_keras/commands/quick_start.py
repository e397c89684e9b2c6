"""A command starts a second earlier without libraries that Keras and TensorFlow would load for others."""

import importlib.abc
import sys
from typing import Any

# Each is looked for where Keras or TensorFlow is imported, done without where it is missing, and used by no command
# through them: wrappers for scikit-learn, data frames, galleries of pictures, clusters of Google's cloud, notebooks,
# boxes that Keras draws, sparse data for `fit`.
NOT_NEEDED = ("sklearn", "pandas", "matplotlib", "googleapiclient", "IPython", "cv2", "scipy")


class _LeftOut(importlib.abc.MetaPathFinder):
    """Finds nothing, but says of `NOT_NEEDED` that they are missing for as long as Keras or TensorFlow is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise ModuleNotFoundError, or leave the module to the other finders."""
        if name in NOT_NEEDED and any(_is_being_imported(module) for module in ("keras", "tensorflow")):
            raise ModuleNotFoundError(f"{name} is left out of the start of a command", name=name)


def _is_being_imported(name: str) -> bool:
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


def leave_out_what_commands_do_not_need() -> None:
    """Call it before Keras and TensorFlow are imported; afterwards everything can be imported as ever."""
    if not any(isinstance(finder, _LeftOut) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeftOut())

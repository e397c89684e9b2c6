"""A command starts without what it does not use; half of a short one's time is the import of TensorFlow and Keras."""

import atexit
import gc
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

# Packages that Keras imports where they are installed, for plots, wrappers and data frames that no command makes.
KERAS_EXTRAS = ("cv2", "matplotlib", "pandas", "sklearn")
# Objects that are made before Python looks for garbage. What an import or a trace makes stays, so looking is in vain.
GARBAGE_THRESHOLD = 50_000


def start_quickly() -> None:
    """Prepare this process, which must be a command's own: Keras' functions that need those packages miss them."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)  # the last look through everything, when the process ends, takes most of a second
    sys.meta_path.insert(0, _NoKerasExtras())


class _NoKerasExtras(MetaPathFinder):
    """Tells Keras, and nobody else, that its extras are not installed."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname in KERAS_EXTRAS and _importer().startswith("keras."):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def _importer() -> str:
    """Name of the module whose import statement runs."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_globals.get("__name__", "")

"""Weights on disk: written beside their place and moved there when complete, read with one clear error.

A weights file is a Keras `.weights.h5` file of the model alone, without its optimizer.
"""

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from dh_keras.errors import DataError, one_line
from dh_keras.files import write_bytes
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.paths import local_file, to_path
from dh_keras.run.classes import Category, read_classes
from dh_keras.run.run_folder import CLASSES_FILE, is_run_folder, open_run

# What HDF5 and Keras raise on damaged files.
_DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)

PREDICTOR_NAMES = ("class_predictor", "box_predictor")


class _FileInMemory(io.BytesIO):
    """What Keras writes like a file: HDF5 crashes when a disk becomes full, at once or when the process ends."""

    def __str__(self) -> str:
        return "memory.weights.h5"  # Keras insists on the end of the name


@contextlib.contextmanager
def _without_optimizer(model: DoubleHeadRCNN) -> Iterator[None]:
    """Keras saves and loads a compiled model's optimizer along with its weights; this leaves it out."""
    optimizer = getattr(model, "optimizer", None)  # a model that was never compiled has no such attribute
    model.optimizer = None
    try:
        yield
    finally:
        model.optimizer = optimizer


def save_weights(model: DoubleHeadRCNN, path: Path) -> None:
    """Write the model's weights, without the optimizer, as a Keras `.weights.h5` file."""
    content = _FileInMemory()
    with _without_optimizer(model):
        model.save_weights(content)
    write_bytes(path, content.getbuffer())


def load_weights(model: DoubleHeadRCNN, path: Path) -> None:
    """Read weights that `save_weights` wrote.

    Raises:
        DataError: when the file is damaged or of another architecture.
    """
    try:
        with _without_optimizer(model), local_file(path) as file:
            model.load_weights(file)
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read: {os.strerror(error.errno or errno.EACCES)}") from error
    except _DAMAGED as error:
        raise DataError(
            f"{path}: is damaged, or of another architecture than its run's config: {one_line(error)}"
        ) from error


def initialize_weights(model: DoubleHeadRCNN, source: str | Path, categories: Sequence[Category]) -> list[str]:
    """Start from trained weights; predictors for other classes keep their random weights.

    Args:
        model: built.
        source: a run folder, or a `.weights.h5` file.
        categories: classes of the new run.

    Returns:
        One line for each array that was skipped.

    Raises:
        DataError: when the source is neither, or anything but the predictors does not fit.
    """
    source = to_path(source)
    same_classes = True
    weights = source
    if is_run_folder(source):
        run = open_run(source)
        weights = run.weights
    classes_file = weights.parent / CLASSES_FILE
    if classes_file.is_file():
        same_classes = [c.name for c in read_classes(classes_file)] == [c.name for c in categories]
    if not weights.is_file():
        raise DataError(f"--init {source}: neither a run folder nor a .weights.h5 file")
    with tempfile.TemporaryDirectory() as folder:
        mixed = Path(folder) / "mixed.weights.h5"
        save_weights(model, mixed)
        skipped = _copy_arrays(weights, mixed, same_classes)
        load_weights(model, mixed)
    return skipped


def _copy_arrays(source: Path, target: Path, same_classes: bool) -> list[str]:
    """Copy what fits from one weights file into another in place; return a line for each predictor array left alone."""
    skipped, wrong = [], []
    try:
        with local_file(source) as file, h5py.File(file, "r") as old, h5py.File(target, "r+") as new:
            for name, array in _arrays(new).items():
                given = old.get(name)
                is_predictor = any(part in name for part in PREDICTOR_NAMES) and "heads" in name
                if is_predictor and (not same_classes or given is None or given.shape != array.shape):
                    shape = "absent" if given is None else list(given.shape)
                    skipped.append(f"{name}: {shape} in the file, {list(array.shape)} here")
                elif given is None or given.shape != array.shape:
                    wrong.append(
                        f"{name} ({'absent' if given is None else list(given.shape)}, not {list(array.shape)})"
                    )
                else:
                    array[...] = given[...]
    except _DAMAGED as error:
        raise DataError(f"--init {source}: not a readable .weights.h5 file: {one_line(error)}") from error
    if wrong:
        raise DataError(
            f"--init {source}: is of another architecture: {len(wrong)} arrays do not fit, first {wrong[0]}"
        )
    return skipped


def count_parameters(path: Path) -> int:
    """Numbers in a weights file, statistics of norms included.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        with local_file(path) as local, h5py.File(local, "r") as file:
            return sum(array.size for array in _arrays(file).values())
    except _DAMAGED as error:
        raise DataError(f"{path}: is damaged: {one_line(error)}") from error


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    found = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return {name: item for name, item in found.items() if not name.startswith("loss_metrics")}

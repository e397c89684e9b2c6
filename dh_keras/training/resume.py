"""Going on with a run: its state in one file, what must be as it was, and cutting its files back to the checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dh_keras.config.options import flatten
from dh_keras.config.schema import PATH_KEYS, Config
from dh_keras.data.augment_file import read_augment_file
from dh_keras.data.dataset import CocoDataset
from dh_keras.errors import ConfigError, DataError, TrainingError, one_line
from dh_keras.files import remove_leftovers, replaced_file
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.paths import local_file
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import CLASSES_FILE, CONFIG_FILE, METRICS_FILE, STATE_FILE, RunFolder
from dh_keras.training.progress import Progress
from dh_keras.training.recording import drop_rows_after
from dh_keras.training.schedule import Length

# Where the images are and what is written beside the training; nothing that changes a step.
MAY_CHANGE = (
    *PATH_KEYS,
    "data.verify",
    "train.checkpoint_every",
    "train.patience",
    "train.pictures",
    "train.sanity_images",
    "evaluate.batch_size",
)
PROGRESS_KEY = "progress"
FINGERPRINT_INDICES = 2**24  # more than a hundred epochs of COCO; all of them would take hours for an endless run


def resume_command(run: RunFolder, strategy: str) -> str:
    """What to type to go on with a run; on every machine of several."""
    option = "" if strategy == "none" else f" --strategy {strategy}"
    return f"dh-keras train{option} --resume --output {run.path}"


def check_config(asked: Config, run: RunFolder) -> None:
    """Refuse to go on with another config.

    Raises:
        ConfigError: naming every key that differs, with both values.
    """
    ours, theirs = flatten(asked), flatten(run.config)
    differing = [key for key in theirs if key not in MAY_CHANGE and ours[key] != theirs[key]]
    if differing:
        changes = ", ".join(f"{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in differing)
        raise ConfigError(
            f"--resume: {run.path / CONFIG_FILE} is of another training: {changes}; leave --config and these keys "
            f"away, or start another run with --init {run.path}"
        )


def check_classes(categories: Sequence[Category], run: RunFolder, annotations: Path) -> None:
    """Refuse to go on with another list of classes.

    Raises:
        DataError: naming the first class that differs.
    """
    ours, theirs = list(categories), list(run.categories)
    if ours == theirs:
        return
    missing = ", ".join(f"{c.name!r} (id {c.id})" for c in theirs if c not in ours)
    added = ", ".join(f"{c.name!r} (id {c.id})" for c in ours if c not in theirs)
    differences = [f"{annotations} lacks {missing}"] if missing else []
    differences += [f"{annotations} has {added} besides"] if added else []
    raise DataError(
        f"--resume: {run.path / CLASSES_FILE} has other classes: {' and '.join(differences) or 'another order'}; "
        f"resume with the annotations of the run, or start another run with --init {run.path}"
    )


def plan_fingerprint(dataset: CocoDataset, plan: Iterable[np.ndarray], augment_file: str | None = None) -> str:
    """A few characters that differ when any step would see other images or other boxes.

    Args:
        dataset: the training split.
        augment_file: the file, whose content counts.
        plan: image indices of every epoch, or of every step; those after `FINGERPRINT_INDICES` follow from them.
    """
    digest, left = hashlib.sha256(), FINGERPRINT_INDICES
    for indices in plan:
        digest.update(np.ascontiguousarray(indices).tobytes())
        left -= indices.size
        if left <= 0:
            break
    for array in (dataset.image_ids, dataset.boxes, dataset.classes, dataset.box_offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    if augment_file is not None:
        digest.update(read_augment_file(augment_file).encode())
    return digest.hexdigest()[:16]


def save_state(model: DoubleHeadRCNN, progress: dict[str, Any], path: Path) -> None:
    """Write everything that training needs to go on as if it had not stopped, in one file.

    Args:
        model: compiled; its variables and its optimizer's are saved.
        progress: JSON-ready values, such as epoch and best AP.
        path: an .npz file.
    """
    arrays = {name: keras.ops.convert_to_numpy(variable) for name, variable in _variables(model).items()}
    arrays[PROGRESS_KEY] = np.array(json.dumps(progress))
    with replaced_file(path) as partial:
        np.savez(partial, **arrays)


def _variables(model: DoubleHeadRCNN) -> dict[str, Any]:
    named = {f"model/{index}": variable for index, variable in enumerate(model.variables)}
    return named | {f"optimizer/{index}": variable for index, variable in enumerate(model.optimizer.variables)}


def load_state(model: DoubleHeadRCNN, path: Path) -> dict[str, Any]:
    """Restore what `save_state` wrote into a compiled model with a built optimizer, and return the progress.

    Raises:
        TrainingError: when the file is missing, damaged, or of another model.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: nothing to resume from; start without --resume, or into another --output")
    try:
        with local_file(path) as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
        progress = dict(json.loads(str(arrays.pop(PROGRESS_KEY))))
    except Exception as error:  # zipfile, zlib, NumPy and JSON raise many types on damaged files
        raise TrainingError(f"{path}: is damaged: {one_line(error)}") from error
    variables = _variables(model)
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if shapes != {name: tuple(v.shape) for name, v in variables.items()}:
        raise TrainingError(f"{path}: was written by another model; resume with the config of its run folder")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return progress


def restore(model: DoubleHeadRCNN, run: RunFolder, length: Length, fingerprint: str) -> Progress:
    """Load a run's state into a compiled model with a built optimizer.

    Raises:
        TrainingError: when there is no state, it does not fit, or the training images are others.
    """
    path = run.path / STATE_FILE
    values = load_state(model, path)
    try:
        progress = Progress.from_dict(values, length)
    except (ValueError, TypeError, OverflowError) as error:
        raise TrainingError(f"{path}: is damaged: {one_line(error)}") from error
    if progress.plan not in (None, fingerprint):
        files = "the annotations" + (" and the data.augment_file" if run.config.data.augment_file else "")
        raise TrainingError(
            f"--resume: {path} was written with other training images or boxes; resume with {files} of the run, or "
            f"start another run with --init {run.path}"
        )
    progress.plan = fingerprint
    return progress


def cut_back(run: RunFolder, progress: Progress) -> None:
    """Drop what was written after the checkpoint: it is about to be written again."""
    remove_leftovers(run.path)
    drop_rows_after(run.path / METRICS_FILE, progress.recorded_step)

"""Going on with a run: what must be as it was, and cutting its files back to the checkpoint."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dh_keras.config.options import flatten
from dh_keras.config.schema import PATH_KEYS, Config
from dh_keras.data.dataset import CocoDataset
from dh_keras.errors import ConfigError, DataError, TrainingError
from dh_keras.files import remove_leftovers
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import CLASSES_FILE, CONFIG_FILE, METRICS_FILE, STATE_FILE, RunFolder
from dh_keras.training.metrics_table import drop_rows_after
from dh_keras.training.progress import Progress
from dh_keras.training.schedule import Length
from dh_keras.training.state import load_state

# Where the images are and what is written beside the training; nothing that changes a step.
MAY_CHANGE = (*PATH_KEYS, "train.checkpoint_every", "train.pictures", "train.sanity_images")


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


def plan_fingerprint(dataset: CocoDataset, plan: np.ndarray) -> str:
    """A few characters that differ when any step would see other images or other boxes."""
    digest = hashlib.sha256()
    for array in (plan, dataset.image_ids, dataset.boxes, dataset.classes, dataset.box_offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def restore(model: DoubleHeadRCNN, run: RunFolder, length: Length, fingerprint: str) -> Progress:
    """Load a run's state into a compiled model with a built optimizer.

    Raises:
        TrainingError: when there is no state, it does not fit, or the training images are others.
    """
    path = run.path / STATE_FILE
    progress = Progress.from_dict(load_state(model, path), length)
    if progress.plan not in (None, fingerprint):
        raise TrainingError(
            f"--resume: {path} was written with other training images or boxes; resume with the annotations of the "
            f"run, or start another run with --init {run.path}"
        )
    progress.plan = fingerprint
    return progress


def cut_back(run: RunFolder, progress: Progress) -> None:
    """Drop what was written after the checkpoint: it is about to be written again."""
    remove_leftovers(run.path)
    drop_rows_after(run.path / METRICS_FILE, progress.recorded_step)

"""Resumable state: everything that training needs to go on as if it had not stopped, in one file."""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dh_keras.errors import TrainingError
from dh_keras.files import replaced_file
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN

PROGRESS_KEY = "progress"


def save_state(model: DoubleHeadRCNN, progress: dict[str, Any], path: Path) -> None:
    """Write everything that training needs to go on as if it had not stopped, in one file.

    Args:
        model: compiled; its variables and its optimizer's are saved.
        progress: JSON-ready values, such as epoch and best AP.
        path: an .npz file.
    """
    arrays = {f"model/{index}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(model.variables)}
    arrays |= {f"optimizer/{index}": keras.ops.convert_to_numpy(v) for index, v in enumerate(model.optimizer.variables)}
    arrays[PROGRESS_KEY] = np.array(json.dumps(progress))

    with replaced_file(path) as partial:
        np.savez(partial, **arrays)


def load_state(model: DoubleHeadRCNN, path: Path) -> dict[str, Any]:
    """Restore what `save_state` wrote into a compiled model with a built optimizer, and return the progress.

    Raises:
        TrainingError: when the file is missing, damaged, or of another model.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: nothing to resume from; start without --resume, or into another --output")
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        progress = json.loads(str(arrays.pop(PROGRESS_KEY)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path}: damaged state file: {error}") from error
    variables = {f"model/{index}": v for index, v in enumerate(model.variables)}
    variables |= {f"optimizer/{index}": v for index, v in enumerate(model.optimizer.variables)}
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if shapes != {name: tuple(v.shape) for name, v in variables.items()}:
        raise TrainingError(f"{path}: was written by another model; resume with the config of its run folder")
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return progress

"""From a published checkpoint to a run folder: recognise the family, infer the network, convert, write."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from dh_keras.builder import build_detector
from dh_keras.checkpoints import authors, mmdetection
from dh_keras.checkpoints.class_names import name_classes
from dh_keras.checkpoints.tensors import assign_tensors, variables_by_path
from dh_keras.checkpoints.torch_file import TorchFile, read_torch_file
from dh_keras.config import Config, validate_config
from dh_keras.data.coco import Category
from dh_keras.errors import ConfigError, DataError
from dh_keras.model import DoubleHeadRCNN
from dh_keras.run_folder import BEST_WEIGHTS, LAST_WEIGHTS, RunFolder, create_run, open_run
from dh_keras.weights import save_weights

FAMILIES = (authors, mmdetection)


@dataclass(frozen=True, eq=False)
class Imported:
    """A converted checkpoint.

    Args:
        model: with the checkpoint's weights.
        config: inferred, complete.
        categories: class index k is categories[k].
        family: whose format it was, for people.
        unused: names of the tensors that have no place in the model.
        extras: what the file held beside the network, such as "optimizer".
    """

    model: DoubleHeadRCNN
    config: Config
    categories: tuple[Category, ...]
    family: str
    unused: tuple[str, ...]
    extras: tuple[str, ...]


def convert_checkpoint(path: str | Path, *, class_names: str | Path | None = None) -> Imported:
    """Read a checkpoint of the paper authors' release or of MMDetection into a model of this package.

    Args:
        path: the .pth file.
        class_names: see `name_classes`.

    Raises:
        DataError: one line that names the file and the tensor, when it is damaged, of another model, or incomplete.
    """
    file = read_torch_file(path)
    source = str(path)
    family = _recognise(file)
    config, num_classes = family.infer_config(file.tensors, source)
    if num_classes < 1:
        raise DataError(f"{source}: its class predictor has no class but the background")
    _require_buildable(config, source)
    categories = name_classes(num_classes, names_file=class_names, own_names=_own_names(file))
    model = build_detector(config.model, num_classes=num_classes)
    unused = assign_tensors(
        file.tensors, family.rules(config), variables_by_path(model), unused=family.UNUSED, source=source
    )
    return Imported(model, config, categories, family.FAMILY, tuple(unused), file.extras)


def import_checkpoint(
    path: str | Path, output: str | Path, *, class_names: str | Path | None = None
) -> tuple[RunFolder, Imported]:
    """Convert a checkpoint and write it as a run folder, which appears only when it is complete.

    Args:
        path: the .pth file.
        output: the run folder; must be new or empty.
        class_names: see `name_classes`.

    Returns:
        The run folder and what was converted.

    Raises:
        DataError: when the checkpoint cannot be converted or the folder exists; nothing is written.

    Example:
        >>> import_checkpoint("dh_faster_rcnn_r50_fpn_1x_coco.pth", "runs/mmdetection")
        >>> Detector.load("runs/mmdetection")("photo.jpg")
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already and is not overwritten; choose another --output")
    imported = convert_checkpoint(path, class_names=class_names)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        run = create_run(partial, imported.config, imported.categories)
        save_weights(imported.model, run.path / BEST_WEIGHTS)
        shutil.copyfile(run.path / BEST_WEIGHTS, run.path / LAST_WEIGHTS)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_run(output), imported


def _recognise(file: TorchFile) -> ModuleType:
    for family in FAMILIES:
        if family.recognises(file.tensors):
            return family
    names = list(file.tensors)
    known = " or ".join(family.FAMILY for family in FAMILIES)
    raise DataError(f"{file.path}: not a model of {known}; its {len(names)} tensors begin with {', '.join(names[:3])}")


def _require_buildable(config: Config, source: str) -> None:
    try:
        validate_config(config)
    except ConfigError as error:
        raise DataError(f"{source}: a network that cannot be built: {error}") from error


def _own_names(file: TorchFile) -> list[str] | None:
    """Class names that MMDetection writes into its checkpoints."""
    described = file.meta.get("dataset_meta")
    for place, key in ((described, "classes"), (described, "CLASSES"), (file.meta, "CLASSES")):
        names = place.get(key) if isinstance(place, dict) else None
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None

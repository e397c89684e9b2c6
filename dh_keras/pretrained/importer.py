"""From a published checkpoint to a run folder: recognise the family, infer the network, convert, write."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dh_keras.config.load import complete_config
from dh_keras.config.schema import Config
from dh_keras.errors import ConfigError, DataError
from dh_keras.files import new_folder, require_new_folder, write_json
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import authors, mmdetection
from dh_keras.pretrained.class_names import name_classes
from dh_keras.pretrained.tensors import assign_tensors, unused_tensors
from dh_keras.pretrained.torch_file import TorchFile, read_torch_file
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import BEST_WEIGHTS, LAST_WEIGHTS, RunFolder, open_run, write_run
from dh_keras.run.weights import save_weights

FAMILIES = (authors, mmdetection)
ORIGIN_FILE = "origin.json"


@dataclass(frozen=True, eq=False)
class Imported:
    """A converted checkpoint.

    Args:
        model: with the checkpoint's weights.
        path: the checkpoint.
        config: inferred, complete.
        categories: class index k is categories[k].
        family: whose format it was, for people.
        unused: names of the tensors that have no place in the model.
        extras: what the file held beside the network, such as "optimizer".
    """

    model: DoubleHeadRCNN
    path: Path
    config: Config
    categories: tuple[Category, ...]
    family: str
    unused: tuple[str, ...]
    extras: tuple[str, ...]

    def origin(self) -> dict[str, Any]:
        """Where the weights come from, ready for JSON."""
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "file": self.path.name,
            "sha256": digest,
            "family": self.family,
            "unused_tensors": list(self.unused),
            "unused_keys": list(self.extras),
        }

    def summary(self) -> str:
        """What was recognised and what was left out, in a few lines."""
        model = self.config.model
        non_local = f" and {model.conv_head.blocks} non-local blocks" if model.conv_head.non_local.channels else ""
        kinds = Counter(next(part for part in reversed(name.split(".")) if not part.isdigit()) for name in self.unused)
        unused = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return "\n".join(
            [
                f"recognised: {self.family}, {model.variant}, ResNet-{model.backbone.depth}, conv-head with "
                f"{model.conv_head.blocks} bottlenecks{non_local}, {model.geometry} geometry",
                f"{len(self.categories)} classes: {', '.join(category.name for category in self.categories[:6])}"
                f"{', ...' if len(self.categories) > 6 else ''}",
                f"{self.model.count_params():,} parameters, every tensor of the network used",
                f"left out: tensors: {unused or 'none'}; beside the network: {', '.join(self.extras) or 'nothing'}",
            ]
        )


def convert_checkpoint(
    path: str | Path, *, class_names: str | Path | None = None, overrides: Sequence[str] = ()
) -> Imported:
    """Read a checkpoint of the paper authors' release or of MMDetection into a model of this package.

    Args:
        path: the .pth file.
        class_names: see `name_classes`.
        overrides: `key=value` changes to the inferred config, such as "model.score_threshold=0.3".

    Raises:
        DataError: one line that names the file and the tensor, when it is damaged, of another model, or incomplete.
    """
    file = read_torch_file(path)
    source = str(path)
    family = _recognise(file)
    config, num_classes = family.infer_config(file.tensors, source)
    if num_classes < 1:
        raise DataError(f"{source}: its class predictor has no class but the background")
    try:  # without the overrides, what is wrong is the checkpoint's fault
        complete_config(config)
    except ConfigError as error:
        raise DataError(f"{source}: a network that cannot be built: {error}") from error
    config = complete_config(config, overrides)
    rules = family.rules(config)
    unused = unused_tensors(file.tensors, rules, unused=family.UNUSED, source=source)
    categories = name_classes(num_classes, names_file=class_names, own_names=_own_names(file))
    model = assemble_detector(config.model, num_classes=num_classes)
    assign_tensors(file.tensors, rules, variables_by_path(model), source=source)
    return Imported(model, Path(path), config, categories, family.FAMILY, tuple(unused), file.extras)


def import_checkpoint(
    path: str | Path, output: str | Path, *, class_names: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[RunFolder, Imported]:
    """Convert a checkpoint and write it as a run folder, which appears only when it is complete.

    Args:
        path: the .pth file.
        output: the run folder; must be new or empty.
        class_names: see `name_classes`.
        overrides: `key=value` changes to the inferred config, such as "model.score_threshold=0.3".

    Returns:
        The run folder and what was converted.

    Raises:
        DataError: when the checkpoint cannot be converted or the folder exists; nothing is written.

    Examples:
        >>> import_checkpoint("dh_faster_rcnn_r50_fpn_1x_coco.pth", "runs/mmdetection")
        >>> Detector.load("runs/mmdetection")("photo.jpg")
    """
    require_new_folder(output)
    imported = convert_checkpoint(path, class_names=class_names, overrides=overrides)
    with new_folder(output) as folder:
        write_run(folder, imported.config, imported.categories)
        save_weights(imported.model, folder / BEST_WEIGHTS)
        shutil.copyfile(folder / BEST_WEIGHTS, folder / LAST_WEIGHTS)
        write_json(folder / ORIGIN_FILE, imported.origin())
    return open_run(output), imported


def _recognise(file: TorchFile) -> ModuleType:
    for family in FAMILIES:
        if family.recognises(file.tensors):
            return family
    names = list(file.tensors)
    known = " or ".join(family.FAMILY for family in FAMILIES)
    raise DataError(f"{file.path}: not a model of {known}; its {len(names)} tensors begin with {', '.join(names[:3])}")


def _own_names(file: TorchFile) -> list[str] | None:
    """Class names that MMDetection writes into its checkpoints."""
    described = file.meta.get("dataset_meta")
    for place, key in ((described, "classes"), (described, "CLASSES"), (file.meta, "CLASSES")):
        names = place.get(key) if isinstance(place, dict) else None
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None

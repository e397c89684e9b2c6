"""The model card: one Markdown page of what a run was trained on, what it reaches, how to use it and where it ends."""

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

import dh_keras
from dh_keras.config.schema import Config
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.formats.coco_entries import read_json
from dh_keras.evaluation.coco_metrics import format_number
from dh_keras.inference.labels import escape_markdown
from dh_keras.paths import to_path
from dh_keras.reports.curves import Row, best_row
from dh_keras.reports.run_data import SplitFacts, describe_split, describe_training_data, uses_shapes
from dh_keras.run.run_folder import RunFolder

FEW_TRAINING_BOXES = 100
FEW_VALIDATION_BOXES = 30
LOW_AP = 0.3
SETTINGS = (
    "model.variant",
    "model.geometry",
    "model.backbone.depth",
    "model.backbone.width",
    "model.backbone.norm",
    "model.backbone.weights",
    "model.fpn.channels",
    "model.roi.conv_scale",
    "model.roi.sampling_ratio",
    "model.fc_head.channels",
    "model.conv_head.channels",
    "model.conv_head.blocks",
    "model.conv_head.non_local.channels",
    "model.loss_weights",
    "model.score_threshold",
    "model.nms_iou",
    "data.min_size",
    "data.max_size",
    "data.augmentation",
    "data.mosaic",
    "data.augment_file",
    "data.batch_size",
    "train.accumulate",
    "train.epochs",
    "train.steps",
    "train.optimizer",
    "train.schedule",
    "train.drops",
    "train.lr",
    "train.base_batch_size",
    "train.precision",
    "train.seed",
)


def write_model_card(
    run: RunFolder,
    *,
    overrides: Sequence[str],
    parameters: int,
    val: CocoDataset,
    own_data: bool,
    metrics: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    history: Sequence[Row],
) -> str:
    """Return the page as Markdown.

    Args:
        run: the opened run.
        overrides: changes to its config for this measurement.
        parameters: of the network.
        val: the dataset that was measured on.
        own_data: whether that is the validation split of the training.
        metrics: what `evaluate_found` returned.
        rows: what `class_rows` returned.
        history: rows of metrics.csv, empty without one.
    """
    environment = Environment(
        loader=PackageLoader("dh_keras.reports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "cell": escape_markdown}
    config, train_facts, val_facts = OmegaConf.structured(run.config), describe_training_data(run), describe_split(val)
    libraries = {name: import_module(name).__version__ for name in ("tensorflow", "keras", "numpy")}
    return environment.get_template("model_card.md").render(
        name=run.path.resolve().name,
        model_name=run.path.resolve().name.replace(" ", "_"),
        run=run.path,
        config=run.config,
        overrides=overrides,
        weights=run.weights.name,
        weights_date=_day(run.weights.stat().st_mtime),
        date=_day(datetime.now(UTC).timestamp()),
        parameters=f"{parameters:,}",
        classes=rows,
        class_list=_first([escape_markdown(row["class"]) for row in rows], 20),
        metrics={"by_head": None, **metrics},
        best=best_row(history),
        evaluations=len(history),
        val=val_facts,
        train=train_facts,
        val_files=(val.annotations_path, val.images_dir),
        licence=describe_licence(run.config, val),
        settings=[(key, _setting(OmegaConf.select(config, key))) for key in SETTINGS],
        versions={"dh_keras": dh_keras.__version__, "python": platform.python_version(), **libraries},
        commit=source_commit(),
        limits=known_limits(train_facts, val_facts, rows, own_data=own_data),
    )


def known_limits(
    train: SplitFacts | str, val: SplitFacts, rows: Sequence[dict[str, Any]], *, own_data: bool
) -> list[str]:
    """Sentences about what was measured on too little, learnt from too little or is found badly."""
    trained = {} if isinstance(train, str) else train.boxes
    aps = {row["class"]: row["AP"] for row in rows if row["AP"] is not None}
    few = f"fewer than {FEW_VALIDATION_BOXES}"
    lines = []
    for what, values, limit in (
        (f"Learnt from few boxes (fewer than {FEW_TRAINING_BOXES} each)", trained, FEW_TRAINING_BOXES),
        (f"Measured on few boxes, so their AP is uncertain ({few})", val.boxes, FEW_VALIDATION_BOXES),
        (f"Sizes with few or no boxes to measure on ({few})", val.sizes, FEW_VALIDATION_BOXES),
        (f"Found badly (AP below {LOW_AP})", aps, LOW_AP),
    ):
        low = {name: value for name, value in values.items() if value < limit}
        if low:
            shown = [f"{escape_markdown(name)} {f'{n:.3f}' if values is aps else n}" for name, n in low.items()]
            lines.append(f"{what}: {_first(shown, 10)}.")
    chosen = ", which also chose the best weights; on new photographs expect a little less" if own_data else ""
    lines.append(f"The numbers are of {val.images} images and {sum(val.boxes.values())} boxes{chosen}.")
    lines.append("Wrong or missing boxes in the annotations lower every number; `worst/` often shows them.")
    return lines


def _first(texts: Sequence[str], most: int) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def describe_licence(config: Config, val: CocoDataset) -> str:
    """Say what the annotation file says of licences, or that nothing is known."""
    if uses_shapes(config.data) and Path(str(val.annotations_path)).is_relative_to(config.data.shapes.directory):
        return "drawn by dh_keras itself; nobody else holds rights in it."
    path = to_path(val.annotations_path)
    licences = read_json(path).get("licenses")
    rows = [row for row in licences if isinstance(row, dict)] if isinstance(licences, list) else []
    names = [" ".join(str(row[key]) for key in ("name", "url") if row.get(key)) for row in rows]
    if any(names):
        return f"as `{path.name}` says: {'; '.join(escape_markdown(name) for name in names if name)}."
    return f"unknown; `{path.name}` names none. Ask whoever provided it before passing the model on."


def source_commit() -> str | None:
    """The commit of this package's source, marked when files differ from it; None outside a Git checkout."""
    root = Path(dh_keras.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _setting(value: Any) -> str:
    if OmegaConf.is_dict(value):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return "null" if value is None else str(value)


def _day(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")

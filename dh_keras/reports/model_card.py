"""The model card: one Markdown page of what a run was trained on, what it reaches, how to use it and where it ends."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

import dh_keras
from dh_keras.config.schema import Config
from dh_keras.data.dataset import CocoDataset
from dh_keras.reports.curves import Row, best_row
from dh_keras.reports.run_data import SplitFacts, uses_shapes
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
    "data.batch_size",
    "train.epochs",
    "train.steps",
    "train.drops",
    "train.lr",
    "train.base_batch_size",
    "train.precision",
    "train.seed",
)


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from.

    Args:
        run: the opened run.
        overrides: changes to its config for this measurement.
        parameters: of the network.
        val: the dataset that was measured on.
        own_data: whether that is the validation split of the training.
        val_facts: its counts.
        train_facts: those of the training split, or why there are none.
        metrics: what `evaluate_found` returned.
        rows: what `class_rows` returned.
        history: rows of metrics.csv, empty without one.
    """

    run: RunFolder
    overrides: Sequence[str]
    parameters: int
    val: CocoDataset
    own_data: bool
    val_facts: SplitFacts
    train_facts: SplitFacts | str
    metrics: dict[str, Any]
    rows: Sequence[dict[str, Any]]
    history: Sequence[Row]


def write_model_card(facts: CardFacts) -> str:
    """Return the page as Markdown."""
    environment = Environment(
        loader=PackageLoader("dh_keras.reports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "cell": _cell}
    run, config = facts.run, OmegaConf.structured(facts.run.config)
    return environment.get_template("model_card.md").render(
        name=run.path.resolve().name,
        model_name=run.path.resolve().name.replace(" ", "_"),
        run=run.path,
        config=run.config,
        overrides=facts.overrides,
        weights=run.weights.name,
        weights_date=_day(run.weights.stat().st_mtime),
        date=_day(datetime.now(UTC).timestamp()),
        parameters=f"{facts.parameters:,}",
        classes=facts.rows,
        class_list=_list_names([row["class"] for row in facts.rows]),
        metrics={"by_head": None, **facts.metrics},
        best=best_row(facts.history),
        evaluations=len(facts.history),
        val=facts.val_facts,
        train=facts.train_facts,
        val_files=(facts.val.annotations_path, facts.val.images_dir),
        licence=describe_licence(run.config, facts.val),
        settings=[(key, _setting(OmegaConf.select(config, key))) for key in SETTINGS],
        versions=versions(),
        commit=source_commit(),
        limits=known_limits(facts),
    )


def known_limits(facts: CardFacts) -> list[str]:
    """Sentences about what was measured on too little, learnt from too little or is found badly."""
    lines = []
    if isinstance(facts.train_facts, SplitFacts):
        few = {name: n for name, n in facts.train_facts.boxes.items() if n < FEW_TRAINING_BOXES}
        lines += _about_counts("Learnt from few boxes", few, f"fewer than {FEW_TRAINING_BOXES} each")
    few = {name: n for name, n in facts.val_facts.boxes.items() if n < FEW_VALIDATION_BOXES}
    lines += _about_counts("Measured on few boxes, so their AP is uncertain", few, f"fewer than {FEW_VALIDATION_BOXES}")
    few = {size: n for size, n in facts.val_facts.sizes.items() if n < FEW_VALIDATION_BOXES}
    lines += _about_counts("Sizes with few or no boxes to measure on", few, f"fewer than {FEW_VALIDATION_BOXES}")
    low = {row["class"]: row["AP"] for row in facts.rows if row["AP"] is not None and row["AP"] < LOW_AP}
    lines += _about_counts("Found badly", {name: f"{ap:.3f}" for name, ap in low.items()}, f"AP below {LOW_AP}")
    total = sum(facts.val_facts.boxes.values())
    chosen = ", which also chose the best weights; on new photographs expect a little less" if facts.own_data else ""
    lines.append(f"The numbers are of {facts.val_facts.images} images and {total} boxes{chosen}.")
    lines.append("Wrong or missing boxes in the annotations lower every number; `worst/` often shows them.")
    return lines


def _about_counts(what: str, counts: dict[str, Any], limit: str) -> list[str]:
    if not counts:
        return []
    shown = [f"{_cell(name)} {value}" for name, value in list(counts.items())[:10]]
    more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    return [f"{what} ({limit}): {', '.join(shown)}{more}."]


def describe_licence(config: Config, val: CocoDataset) -> str:
    """Say what the annotation file says of licences, or that nothing is known."""
    if uses_shapes(config.data) and Path(val.annotations_path).is_relative_to(config.data.shapes.directory):
        return "drawn by dh_keras itself; nobody else holds rights in it."
    path = Path(val.annotations_path)
    tree = json.loads(path.read_text(encoding="utf-8-sig"))
    licences = tree.get("licenses")
    rows = [row for row in licences if isinstance(row, dict)] if isinstance(licences, list) else []
    names = [" ".join(str(row[key]) for key in ("name", "url") if row.get(key)) for row in rows]
    if any(names):
        return f"as `{path.name}` says: {'; '.join(_cell(name) for name in names if name)}."
    return f"unknown; `{path.name}` names none. Ask whoever provided it before passing the model on."


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    libraries = {name: import_module(name).__version__ for name in ("tensorflow", "keras", "numpy")}
    return {"dh_keras": dh_keras.__version__, "python": platform.python_version(), **libraries}


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


def _list_names(names: Sequence[str]) -> str:
    shown = [_cell(name) for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _day(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _cell(text: Any) -> str:
    """A name or value as it is, in one cell of a Markdown table."""
    escaped = " ".join(str(text).split())
    for mark in "\\|`*_<>[]":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped

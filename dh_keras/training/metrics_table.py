"""The run folder's metrics.csv: a row per evaluation, complete at any moment."""

import csv
import io
from pathlib import Path
from typing import Any

from dh_keras.evaluation.coco_metrics import METRIC_NAMES
from dh_keras.files import replaced_text
from dh_keras.modeling.constants import LOSS_NAMES

AP_COLUMNS = tuple(name for name in METRIC_NAMES if name.startswith("AP"))
COLUMNS = (
    "step",
    "epoch",
    *LOSS_NAMES,
    "total_loss",
    "lr",
    "images_per_second",
    "data_wait",
    *AP_COLUMNS,
)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the table, which gets its header with the first; what is not defined stays empty."""
    _write(path, [*_read(path), {name: _text(row.get(name)) for name in COLUMNS}])


def drop_rows_after(path: Path, step: int) -> None:
    """Leave the rows up to a step only, and none that was half written."""
    if path.is_file():
        complete = [row for row in _read(path) if None not in row and None not in row.values()]
        _write(path, [row for row in complete if row["step"].isdigit() and int(row["step"]) <= step])


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    # Where a machine lost its power there may be zeros or half a character.
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with replaced_text(path) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _text(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value

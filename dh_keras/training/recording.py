"""What training records as it goes: the run folder's metrics.csv and its TensorBoard events.

The table has a row per epoch and is complete at any moment; events that are written again after a checkpoint take
the place of what was there.
"""

import contextlib
import csv
import io
import re
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.evaluation.coco_metrics import METRIC_NAMES
from dh_keras.files import replaced_text, write_bytes, writing
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.paths import is_remote

AP_COLUMNS = tuple(name for name in METRIC_NAMES if name.startswith("AP"))
VALIDATION_LOSSES = tuple(f"val_{name}" for name in (*LOSS_NAMES, "total_loss"))
COLUMNS = (
    "step",
    "epoch",
    *LOSS_NAMES,
    "total_loss",
    *VALIDATION_LOSSES,
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
        _write(path, [row for row in complete if re.fullmatch("[0-9]{1,18}", row["step"]) and int(row["step"]) <= step])


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    # Where a machine lost its power there may be zeros or half a character.
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: is damaged: {error}; remove it, or the line") from error
    if rows and (not set(reader.fieldnames) <= set(COLUMNS) or "step" not in reader.fieldnames):
        raise DataError(f"{path}: is damaged: its first line is not {','.join(COLUMNS)}; mend or remove it")
    return rows


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with replaced_text(path) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _text(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


class EventWriter:
    """Scalars for TensorBoard, in a new file.

    TensorBoard is told to forget what earlier files in the folder say about the steps that are written again.

    Args:
        folder: one run to TensorBoard; made if needed.
        first_step: the first one that is going to be written.
    """

    def __init__(self, folder: Path, *, first_step: int):
        self.folder = folder
        # TensorFlow writes to disks; from this one the file is copied whenever it has to be complete.
        self._local = tempfile.TemporaryDirectory(prefix="dh_keras-") if is_remote(folder) else None
        log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        restart = tf.compat.v1.Event(wall_time=time.time(), step=first_step, session_log=log)
        with writing(folder), tf.device("CPU:0"):
            # What tf.summary is made of: it has no word for a restart.
            self._writer = tf.raw_ops.SummaryWriter(shared_name=f"{folder} {time.time_ns()}")
            weakref.finalize(self, _close, self._writer).atexit = False
            tf.raw_ops.CreateSummaryFileWriter(
                writer=self._writer,
                logdir=str(folder) if self._local is None else self._local.name,
                max_queue=10,
                flush_millis=120_000,
                filename_suffix=".v2",
            )
            tf.raw_ops.ImportEvent(writer=self._writer, event=restart.SerializeToString())

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Add values; None is left out."""
        with writing(self.folder), tf.device("CPU:0"):
            for tag, value in values.items():
                if value is not None:
                    tf.raw_ops.WriteScalarSummary(writer=self._writer, step=step, tag=tag, value=tf.constant(value))

    def flush(self) -> None:
        """See that everything is in the file."""
        with writing(self.folder):
            tf.raw_ops.FlushSummaryWriter(writer=self._writer)
        if self._local is not None:
            for file in Path(self._local.name).iterdir():
                write_bytes(self.folder / file.name, file.read_bytes())


def _close(writer: tf.Tensor) -> None:
    # Nobody knows when this is called: it may be while a graph is traced, or when the disk never took the file.
    with tf.init_scope(), contextlib.suppress(tf.errors.OpError):
        tf.raw_ops.CloseSummaryWriter(writer=writer)

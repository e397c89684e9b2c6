"""What happens beside the optimiser steps: the progress bar, evaluation, the metrics table, checkpoints."""

import csv
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from dh_keras.constants import LOSS_NAMES
from dh_keras.evaluation import METRIC_NAMES
from dh_keras.run_folder import BEST_WEIGHTS, LAST_WEIGHTS, METRICS_FILE, STATE_FILE, TENSORBOARD_DIR, RunFolder
from dh_keras.training.state import save_state
from dh_keras.weights import save_weights

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
# The compiled graph's first step takes many times as long as the others and says nothing about speed.
WARMUP_STEPS = 1


class ProgressBar(keras.callbacks.Callback):
    """One bar per epoch with the running losses and images per second; measures throughput for `RunRecorder`.

    Args:
        batch_size: images per step over all replicas.
        epochs: epochs in all.
        show: False measures without a bar.
    """

    def __init__(self, *, batch_size: int, epochs: int, show: bool = True):
        super().__init__()
        self.batch_size = batch_size
        self.epochs = epochs
        self.show = show
        self.images_per_second = 0.0
        self.data_wait = 0.0
        self._steps_seen = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Open the bar."""
        title = f"epoch {epoch + 1}/{self.epochs}"
        # In a log file every refresh is a line.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        steps = self.params["steps"]
        self._bar = tqdm(total=steps, desc=title, unit="step", disable=not self.show, mininterval=interval)
        self._busy = self._waited = 0.0
        self._counted = 0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Start the clock of a step."""
        self._start = time.time()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Advance the bar."""
        logs = logs or {}
        self._steps_seen += 1
        if self._steps_seen > WARMUP_STEPS:
            self._counted += 1
            self._busy += time.time() - self._start
            self._waited += max(0.0, float(logs["batch_ready_at"]) - self._start)
            self.images_per_second = self._counted * self.batch_size / self._busy
            self.data_wait = self._waited / self._busy
        shown = {"loss": f"{float(logs['total_loss']):.3f}", "images/s": f"{self.images_per_second:.1f}"}
        shown |= {name.removesuffix("_loss"): f"{float(logs[name]):.3f}" for name in LOSS_NAMES if float(logs[name])}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Close the bar."""
        self._bar.close()


class RunRecorder(keras.callbacks.Callback):
    """At the end of an epoch: evaluate if it is due, then write metrics, TensorBoard events, weights and state.

    Args:
        run: where everything is written.
        progress_bar: measures the throughput.
        evaluate: returns COCO metrics of the current weights, or None when there is nothing to evaluate on.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        epochs: epochs in all.
        best_ap: AP of the best weights so far, when training is resumed.
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        progress_bar: ProgressBar,
        evaluate: Callable[[], dict] | None,
        evaluate_every: int,
        epochs: int,
        best_ap: float | None = None,
    ):
        super().__init__()
        self.run = run
        self.progress_bar = progress_bar
        self.evaluate = evaluate
        self.evaluate_every = evaluate_every
        self.epochs = epochs
        self.best_ap = best_ap
        self._writer = tf.summary.create_file_writer(str(run.path / TENSORBOARD_DIR))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Record the epoch."""
        row = self._row(epoch, logs or {})
        due = (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs
        metrics = self.evaluate() if self.evaluate and due else None
        if metrics:
            row |= {name: metrics[name] for name in AP_COLUMNS}
            shown = ", ".join(
                f"{name} {'n/a' if row[name] is None else format(row[name], '.3f')}" for name in AP_COLUMNS
            )
            tqdm.write(f"epoch {epoch + 1}: {shown}")
            ap = metrics["AP"] or 0.0
            if self.best_ap is None or ap > self.best_ap:
                self.best_ap = ap
                save_weights(self.model, self.run.path / BEST_WEIGHTS)
        save_weights(self.model, self.run.path / LAST_WEIGHTS)
        if due:
            append_row(self.run.path / METRICS_FILE, row)
        self._write_events(row)
        save_state(self.model, {"epoch": epoch + 1, "best_ap": self.best_ap}, self.run.path / STATE_FILE)

    def _row(self, epoch: int, logs: dict) -> dict[str, Any]:
        optimizer = self.model.optimizer
        row = {"step": int(keras.ops.convert_to_numpy(optimizer.iterations)), "epoch": epoch + 1}
        row |= {name: float(logs[name]) for name in (*LOSS_NAMES, "total_loss")}
        row["lr"] = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        row["images_per_second"] = self.progress_bar.images_per_second
        row["data_wait"] = self.progress_bar.data_wait
        return row

    def _write_events(self, row: dict[str, Any]) -> None:
        with self._writer.as_default(step=row["step"]):
            for name, value in row.items():
                if value is not None and name not in ("step", "epoch"):
                    tf.summary.scalar(name, value)
        self._writer.flush()


def append_row(path: Any, row: dict[str, Any]) -> None:
    """Add a row to the metrics table, which gets its header with the first; what is not defined stays empty."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({name: _text(row.get(name)) for name in COLUMNS})


def _text(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value

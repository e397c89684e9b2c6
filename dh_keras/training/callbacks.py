"""What happens beside the optimiser steps: counting, checkpoints, evaluation, the metrics table, stopping."""

import math
from collections.abc import Callable
from typing import Any

import keras
from tqdm import tqdm

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import Plan
from dh_keras.errors import TrainingError
from dh_keras.evaluation.coco_metrics import format_number
from dh_keras.modeling.training_step import PREVIOUS_NORM
from dh_keras.run.run_folder import BEST_WEIGHTS, LAST_WEIGHTS, METRICS_FILE, STATE_FILE, TENSORBOARD_DIR, RunFolder
from dh_keras.run.weights import save_weights
from dh_keras.training.progress import Progress, ProgressBar
from dh_keras.training.recording import AP_COLUMNS, VALIDATION_LOSSES, EventWriter, append_row
from dh_keras.training.resume import save_state
from dh_keras.training.schedule import Length
from dh_keras.training.signals import StopRequest
from dh_keras.training.user_callbacks import UserCallbacks
from dh_keras.training.validation import averaged_weights
from dh_keras.training.workers.workers import Workers

# TensorBoard gets every so many steps.
EVENT_STEPS = 20
_ADVICE = "lower train.lr, lengthen train.warmup_steps or check the boxes of these images"


class StepCounter(keras.callbacks.Callback):
    """The first callback: counts steps and losses, and ends training after the step in which a signal came.

    Losses come with their step. Whether its gradients were finite comes with the next one, so that nothing waits for
    them; a step in which they were not has changed nothing.

    Args:
        progress: of the run.
        stop: notes the signals.
        workers: all of them end after the same step.
        dataset, plan: the images of every step.
    """

    def __init__(self, *, progress: Progress, stop: StopRequest, workers: Workers, dataset: CocoDataset, plan: Plan):
        super().__init__()
        self.progress = progress
        self.stop = stop
        self.workers = workers
        self.dataset = dataset
        self.plan = plan
        self._unsettled: dict[str, float] | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Count.

        Raises:
            TrainingError: when this step or the one before was not finite.
        """
        if self._unsettled:
            self._require_finite(logs[PREVIOUS_NORM])
        self.progress.add_step(logs)
        self._unsettled = {name: logs[name] for name in self.model.loss_weights}
        self.stop.agree(self.workers)
        if self.stop.number is not None:
            self.model.stop_training = True
        if self.model.stop_training or not all(map(math.isfinite, self._unsettled.values())):
            self.settle()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """See `settle`."""
        self.settle()

    def settle(self) -> None:
        """Wait for the last step; to be called before anything is made of it.

        Raises:
            TrainingError: when it was not finite.
        """
        if self._unsettled:
            self._require_finite(float(self.model.gradient_norm.numpy()))

    def _require_finite(self, gradient_norm: float) -> None:
        values = {**self._unsettled, "gradient": gradient_norm}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            step = self.progress.step
            ids = " ".join(map(str, self.dataset.image_ids[self.plan.step(step - 1)].tolist()))
            raise TrainingError(f"non-finite {' '.join(bad)} at step {step}, image ids [{ids}]; {_ADVICE}")
        self._unsettled = None


class EvaluationHelper(keras.callbacks.Callback):
    """On a worker that is not the chief, in the place of `RunRecorder`: takes part in its evaluations.

    Args:
        run: its config says when there is an evaluation.
        progress: of the run, updated before this callback.
        length: of the run.
        evaluate: returns what `validate` does, or None when there is nothing to evaluate on.
        users: callbacks that are told of every epoch when all is saved, or None.
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        progress: Progress,
        length: Length,
        evaluate: Callable[[], Any] | None,
        users: UserCallbacks | None = None,
    ):
        super().__init__()
        self.run = run
        self.progress = progress
        self.length = length
        self.evaluate = evaluate
        self.users = users
        self.row: dict[str, Any] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Finish the epoch, unless it was cut short."""
        if not self.model.stop_training:
            self.finish_epoch()

    def finish_epoch(self) -> None:
        """Record the epoch and let the users know."""
        self.record_epoch()
        if self.users is not None:
            self.users.epoch_is_recorded(self.epoch - 1, self.row)

    def record_epoch(self) -> None:
        """Evaluate with the others if it is due; end training when AP has not risen for long."""
        with averaged_weights(self.model):
            self.row = self.record_weights()
        self.progress.record_epoch()
        if self.progress.is_over(self.length, self.run.config.train.patience):
            self.model.stop_training = True

    def record_weights(self) -> dict[str, Any]:
        """What needs the weights as they are evaluated; returns the mean losses and, if it is due, what was found."""
        row: dict[str, Any] = self.progress.mean_losses()
        if self.is_evaluation_due():
            row |= self.evaluate()
            self.progress.add_evaluation(row["AP"] or 0.0)
        return row

    def is_evaluation_due(self) -> bool:
        """Whether the epoch that has just ended is one with an evaluation; the last one always is."""
        ends = self.progress.step == self.length.steps
        return self.evaluate is not None and (ends or self.epoch % self.run.config.train.evaluate_every == 0)

    @property
    def epoch(self) -> int:
        """The one under way or just ended, counted from 1."""
        return -(-self.progress.step // self.length.steps_per_epoch)


class RunRecorder(EvaluationHelper):
    """Writes the run folder: checkpoints within epochs; at their end evaluation, metrics, events, weights.

    A checkpoint never says more than the files beside it: rows, events and weights are on the disk before it is. When
    the run is resumed, rows beyond it are dropped, and TensorBoard forgets such events.

    Args:
        progress_bar: measures the throughput.
        settle: see `StepCounter`.
        given: see `EvaluationHelper`; everything is written into the run.
    """

    def __init__(self, *, progress_bar: ProgressBar, settle: Callable[[], None], **given: Any):
        super().__init__(**given)
        self.progress_bar = progress_bar
        self.settle = settle
        folder = self.run.path / TENSORBOARD_DIR  # two runs to TensorBoard, as they go on from different steps
        self._step_events = EventWriter(folder / "steps", first_step=self.progress.step + 1)
        self._epoch_events = EventWriter(folder / "epochs", first_step=self.progress.recorded_step + 1)

    def save(self) -> None:
        """Write a checkpoint."""
        self.settle()
        self._step_events.flush()
        self._epoch_events.flush()
        save_state(self.model, self.progress.as_dict(), self.run.path / STATE_FILE)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Write events and checkpoints when they are due."""
        step = self.progress.step
        if step % EVENT_STEPS == 0:
            losses = {name: float(value) for name, value in (logs or {}).items() if "loss" in name}
            values = {**losses, **self.progress_bar.vital_signs(), "lr": self._learning_rate()}
            self._step_events.write(step, {f"step/{name}": value for name, value in values.items()})
        if self.model.stop_training:
            with averaged_weights(self.model):
                save_weights(self.model, self.run.path / LAST_WEIGHTS)
            self.save()
        elif self.progress.is_at_end_of_epoch(self.length):
            pass  # everything is saved anyway
        elif (every := self.run.config.train.checkpoint_every) and step % every == 0:
            self.save()

    def record_epoch(self) -> None:
        """Evaluate if it is due, then write metrics, events, weights and a checkpoint."""
        if self.is_evaluation_due():
            self.save()  # what interrupts the evaluation costs no step
        super().record_epoch()
        self.save()
        if self.model.stop_training and self.progress.step < self.length.steps:
            count = self.progress.evaluations_since_best
            tqdm.write(f"no better AP in {count} evaluations: training ends here (train.patience)")

    def record_weights(self) -> dict[str, Any]:
        """Evaluate if it is due, write all but the checkpoint, and return the row of the table."""
        row = self._row()
        if self.is_evaluation_due():
            row |= self._evaluate()
        save_weights(self.model, self.run.path / LAST_WEIGHTS)
        append_row(self.run.path / METRICS_FILE, row)
        values = {name: value for name, value in row.items() if name not in ("step", "epoch")}
        self._epoch_events.write(row["step"], values)
        return row

    def _evaluate(self) -> dict[str, float | None]:
        """Keep the weights if they are the best, and return the columns of the row."""
        found = self.evaluate()
        shown = {name: format_number(found[name]) for name in (*AP_COLUMNS, "val_total_loss")}
        tqdm.write(f"epoch {self.epoch}: " + ", ".join(f"{name} {value}" for name, value in shown.items()))
        if self.progress.add_evaluation(found["AP"] or 0.0):
            save_weights(self.model, self.run.path / BEST_WEIGHTS)
        return {name: found[name] for name in (*AP_COLUMNS, *VALIDATION_LOSSES)}

    def _row(self) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "epoch": self.epoch,
            **self.progress.mean_losses(),
            "lr": self._learning_rate(),
            "images_per_second": self.progress_bar.images_per_second,
            "data_wait": self.progress_bar.data_wait,
        }

    def _learning_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

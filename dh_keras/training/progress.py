"""How far training is, and the bar that shows it."""

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import psutil
import tensorflow as tf
from tqdm import tqdm

from dh_keras.modeling.constants import LOSS_NAMES, LOSSES
from dh_keras.training.schedule import Length

# The compiled graph's first step takes many times as long as the others and says nothing about speed.
WARMUP_STEPS = 1


@dataclass
class Progress:
    """What a resumed run has to know besides the weights and the optimizer.

    Args:
        step: steps done.
        recorded_step: end of the last epoch whose evaluation, row and weights are written; the epoch under way began
            here.
        best_ap: AP of the best weights so far.
        evaluations_since_best: how many came after it.
        loss_sums: sum of each loss over the steps since recorded_step.
        plan: fingerprint of the images of every step.
    """

    step: int = 0
    recorded_step: int = 0
    best_ap: float | None = None
    evaluations_since_best: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    plan: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any], length: Length) -> "Progress":
        """Read what `as_dict` gave; a state of version 0.1 counted epochs only.

        Raises:
            ValueError, TypeError: when they are something else.
        """
        if "epoch" in values:
            step = min(int(values["epoch"]) * length.steps_per_epoch, length.steps)
            return cls(step=step, recorded_step=step, best_ap=values.get("best_ap"))
        found = cls(**values)
        steps, sums = (found.recorded_step, found.step, length.steps), found.loss_sums
        if any(type(step) is not int for step in steps) or not 0 <= steps[0] <= steps[1] <= steps[2]:
            raise ValueError(f"steps {steps[:2]!r:.80}")
        if type(found.evaluations_since_best) is not int or found.evaluations_since_best < 0:
            raise ValueError(f"evaluations {found.evaluations_since_best!r:.80}")
        if not isinstance(sums, dict):
            raise TypeError("no sums of losses")
        numbers = [*sums.values(), 0.0 if found.best_ap is None else found.best_ap]
        if any(type(number) is not float for number in numbers):
            raise ValueError("losses or an AP that are no numbers")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, which keeps every bit of the sums."""
        return asdict(self)

    def add_step(self, losses: dict[str, Any]) -> None:
        """Count a step and its losses."""
        self.step += 1
        for name in (*LOSS_NAMES, "total_loss"):
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + float(losses[name])

    def mean_losses(self) -> dict[str, float]:
        """Mean of each loss over the epoch under way."""
        return {name: value / (self.step - self.recorded_step) for name, value in self.loss_sums.items()}

    def add_evaluation(self, ap: float) -> bool:
        """Count an evaluation; returns whether it is the best so far."""
        is_best = self.best_ap is None or ap > self.best_ap
        if is_best:
            self.best_ap = ap
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        return is_best

    def is_over(self, length: Length, patience: int) -> bool:
        """Whether nothing is left to train: the last step is recorded, or AP has not risen for too long."""
        return self.recorded_step == length.steps or 0 < patience <= self.evaluations_since_best

    def record_epoch(self) -> None:
        """Begin the next epoch."""
        self.recorded_step, self.loss_sums = self.step, {}

    def is_at_end_of_epoch(self, length: Length) -> bool:
        """Whether the epoch under way is complete, but not yet recorded."""
        at_end = self.step % length.steps_per_epoch == 0 or self.step == length.steps
        return at_end and self.step > self.recorded_step


class ProgressBar(keras.callbacks.Callback):
    """One bar per epoch: the epoch's mean losses, images per second, waiting for data, time left, memory.

    Args:
        progress: of the run, updated before this callback.
        batch_size: images per step over all replicas.
        length: of the run.
        show: False measures without a bar.
    """

    def __init__(self, *, progress: Progress, batch_size: int, length: Length, show: bool = True):
        super().__init__()
        self.progress = progress
        self.batch_size = batch_size
        self.length = length
        self.show = show
        self.images_per_second = 0.0
        self.data_wait: float | None = None
        self._steps_seen = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Open the bar."""
        first = epoch * self.length.steps_per_epoch
        self._bar = tqdm(
            initial=self.progress.step - first,
            total=min(self.length.steps_per_epoch, self.length.steps - first),
            desc=f"epoch {epoch + 1}/{self.length.epochs}",
            unit="step",
            disable=not self.show,
            mininterval=0.5 if sys.stderr.isatty() else 15.0,  # in a log file every refresh is a line
        )
        self._busy = self._waited = 0.0
        self._counted = 0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Start the clock of a step."""
        self._start = time.time()

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Advance the bar."""
        self._steps_seen += 1
        if self._steps_seen > WARMUP_STEPS:
            self._counted += 1
            self._busy += time.time() - self._start
            self.images_per_second = self._counted * self.batch_size / self._busy
            if "data_wait" in logs:  # the mean of all workers
                self._waited += logs["data_wait"]
                self.data_wait = self._waited / self._busy
        self._bar.set_postfix(self._shown(), refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Close the bar."""
        self._bar.close()

    @property
    def seconds_left(self) -> float | None:
        """Until the last step at the speed of this epoch, evaluations not counted; None before it is known."""
        if not self.images_per_second:
            return None
        return (self.length.steps - self.progress.step) * self.batch_size / self.images_per_second

    def vital_signs(self) -> dict[str, float | None]:
        """images_per_second, data_wait, seconds_left, memory_gb and, with a GPU, gpu_memory_gb.

        data_wait is a share of the time; it and seconds_left are None while they are not known.
        """
        signs = {
            "images_per_second": self.images_per_second,
            "data_wait": self.data_wait,
            "seconds_left": self.seconds_left,
            "memory_gb": psutil.Process().memory_info().rss / 1e9,
        }
        if tf.config.list_physical_devices("GPU"):
            signs["gpu_memory_gb"] = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
        return signs

    def _shown(self) -> dict[str, str]:
        losses = self.progress.mean_losses()
        signs = self.vital_signs()
        shown = {"loss": f"{losses['total_loss']:.3f}", "images/s": f"{signs['images_per_second']:.1f}"}
        shown["wait"] = "?" if signs["data_wait"] is None else f"{signs['data_wait']:.0%}"
        left = signs["seconds_left"]
        shown["left"] = "?" if left is None else tqdm.format_interval(left)
        shown["memory"] = f"{signs['memory_gb']:.1f}GB"
        if "gpu_memory_gb" in signs:
            shown["GPU"] = f"{signs['gpu_memory_gb']:.1f}GB"
        return shown | {short: f"{losses[name]:.3f}" for short, name in LOSSES.items() if losses[name]}

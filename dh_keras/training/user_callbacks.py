"""Keras callbacks of the caller's, such as those of Weights & Biases or MLflow, in a training of this package."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.training.progress import Progress
from dh_keras.training.recording import AP_COLUMNS, VALIDATION_LOSSES
from dh_keras.training.schedule import Length

# What a step and an epoch are told by, and what Keras calls it.
LOGS = {
    **{name: name for name in (*LOSS_NAMES, *VALIDATION_LOSSES, *AP_COLUMNS)},
    "total_loss": "loss",
    "val_total_loss": "val_loss",
}


class UserCallbacks(keras.callbacks.Callback):
    """Tells callbacks what Keras would, in one training that may take several calls of `fit`.

    The beginning and the end of training come once. Batches and epochs are counted from the start of the run, also when
    it is resumed. An epoch ends when it is recorded, with what was measured on the validation images; one that is cut
    short does not. Every worker has its own callbacks and calls them with the same logs, as Keras does.

    Args:
        callbacks: of Keras; no logs but these reach them, and testing is not announced.
        model: that they may look at, or whose `stop_training` they may set.
        progress: of the run, updated before this callback.
        length: of the run.
    """

    def __init__(
        self, callbacks: Sequence[keras.callbacks.Callback], *, model: keras.Model, progress: Progress, length: Length
    ):
        super().__init__()
        self.progress = progress
        self.length = length
        self._last: dict[str, float] = {}
        self._all = keras.callbacks.CallbackList(
            list(callbacks), model=model, epochs=length.epochs, steps=length.steps_per_epoch, verbose=0
        )

    def begin(self) -> None:
        """Training begins, or goes on."""
        self._all.on_train_begin()

    def end(self) -> None:
        """Training ends, for whatever reason but an error."""
        self._all.on_train_end(self._last)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Pass it on."""
        self._all.on_epoch_begin(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Pass it on."""
        self._all.on_train_batch_begin(self.progress.step % self.length.steps_per_epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Pass the losses of this step on."""
        self._all.on_train_batch_end((self.progress.step - 1) % self.length.steps_per_epoch, _named(logs))

    def epoch_is_recorded(self, epoch: int, row: Mapping[str, Any]) -> None:
        """Pass an epoch on, which is counted from 0: its mean losses and, after an evaluation, what that found."""
        self._last = _named(row)
        self._all.on_epoch_end(epoch, self._last)


def _named(values: Mapping[str, Any]) -> dict[str, float]:
    """What is known of the losses and measures, by Keras' names."""
    return {name: float(values[ours]) for ours, name in LOGS.items() if values.get(ours) is not None}


def check_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Refuse what is no Keras callback.

    Raises:
        ConfigError: naming the first.
    """
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ConfigError(f"`callbacks`: expected objects of keras.callbacks.Callback, got {callback!r:.80}")

"""What the validation images say about a model in training: losses and AP, of the averaged weights where there are."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import keras
import tensorflow as tf

from dh_keras.config.schema import Config
from dh_keras.data.balance import epoch_images
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import Plan, steps_per_epoch
from dh_keras.inference.detector import ModelDetector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.training.fitting import worker_batches
from dh_keras.training.signals import StopRequest
from dh_keras.training.workers.shared_evaluation import evaluate_together
from dh_keras.training.workers.workers import Workers


def validate(
    detector: ModelDetector,
    dataset: CocoDataset,
    config: Config,
    *,
    distribution: tf.distribute.Strategy,
    workers: Workers,
    stop: StopRequest,
) -> dict:
    """COCO metrics and `validation_losses`, equal on every worker; all must call this.

    Raises:
        Interrupted: on every worker, when a signal came to any before the detections were made.
    """
    metrics = evaluate_together(detector, dataset, config, workers=workers, stop=stop)
    losses = validation_losses(detector.model, dataset, config, distribution=distribution, workers=workers)
    return metrics | losses


def validation_losses(
    model: DoubleHeadRCNN,
    dataset: CocoDataset,
    config: Config,
    *,
    distribution: tf.distribute.Strategy,
    workers: Workers,
) -> dict[str, float]:
    """Mean losses over the batches of a split, images as they are but for their size, norms as in inference.

    Batches are made as in training: a canvas whose images do not fill whole ones shows some of them twice. The same
    anchors and RoIs are sampled every time.

    Returns:
        {"val_" and the name of a loss: its mean}, the weighted total included.
    """
    plain = {"augmentation": "none", "scale_jitter": None, "mosaic": 0.0, "augment_file": None}
    data = replace(config.data, **plain, filter_empty=False, repeat_threshold=0.0)
    images = epoch_images(dataset, data)
    steps = steps_per_epoch(images.canvas_index, data.batch_size)
    batches = worker_batches(
        0,
        dataset=dataset,
        plan=Plan(*images, batch_size=data.batch_size, seed=0, steps=steps),
        config=data,
        seed=model.seed,
        distribution=distribution,
        workers=workers,
    )
    return {f"val_{name}": value for name, value in _evaluate(model, batches, steps).items()}


def _evaluate(model: DoubleHeadRCNN, batches: tf.data.Dataset, steps: int) -> dict[str, float]:
    means = model.evaluate(batches, steps=steps, verbose=0, return_dict=True)
    return {"total_loss" if name == "loss" else name: float(value) for name, value in means.items()}


@contextlib.contextmanager
def averaged_weights(model: DoubleHeadRCNN) -> Iterator[None]:
    """Within, a model has the averages that its optimizer keeps in the place of its weights; nothing where it has none.

    Statistics of norms, which are averages by themselves, stay.
    """
    if not _averages_weights(model):
        yield
        return
    raw = _copy_weights(model)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        _assign_weights(model, raw)


class KeepRawWeights(keras.callbacks.Callback):
    """`fit` leaves a model with averaged weights when it ends; a run, which may call it again, goes on with the raw."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Note the weights; what comes between this and the end of `fit` changes none."""
        if _averages_weights(self.model):
            self._raw = _copy_weights(self.model)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Put them back."""
        if _averages_weights(self.model):
            _assign_weights(self.model, self._raw)


def _averages_weights(model: DoubleHeadRCNN) -> bool:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer).use_ema


def _copy_weights(model: DoubleHeadRCNN) -> list:
    return [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]


def _assign_weights(model: DoubleHeadRCNN, weights: list) -> None:
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)

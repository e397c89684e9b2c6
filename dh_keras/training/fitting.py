"""The optimiser steps of a run, from any step to the last."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data.augment_file import fault_of
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import Plan, find_bad_image, train_dataset
from dh_keras.errors import DataError
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.training.schedule import Length
from dh_keras.training.workers.workers import Workers


class Stretch(NamedTuple):
    """Epochs that `fit` can do in one call, as they have equally many steps.

    Args:
        first_epoch: counted from 0.
        last_epoch: the one after the last.
        steps: per epoch.
        start_step: steps before it.
    """

    first_epoch: int
    last_epoch: int
    steps: int
    start_step: int


def stretches(step: int, length: Length) -> list[Stretch]:
    """What is left after `step` steps: the rest of an epoch, the whole epochs, a shorter last epoch."""
    per_epoch = length.steps_per_epoch
    found = []
    while step < length.steps:
        epoch, within = divmod(step, per_epoch)
        whole = (length.steps - step) // per_epoch if within == 0 else 0
        steps = per_epoch if whole else min(per_epoch - within, length.steps - step)
        found.append(Stretch(epoch, epoch + max(whole, 1), steps, step))
        step += steps * max(whole, 1)
    return found


def worker_batches(
    start_step: int,
    *,
    dataset: CocoDataset,
    plan: Plan,
    config: DataConfig,
    seed: int,
    distribution: tf.distribute.Strategy,
    workers: Workers,
) -> tf.data.Dataset:
    """This worker's share of the batches of a plan, from a step on, as `fit` takes them; see `train_dataset`."""

    def make(context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
        return train_dataset(
            dataset,
            config,
            plan=plan,
            seed=seed,
            start_step=start_step,
            shard=(workers.index, workers.count),
            # Keras divides the batches of one process among its replicas, but not those of several.
            parts=distribution.num_replicas_in_sync // workers.count if context else 1,
        )

    return distribution.distribute_datasets_from_function(make) if workers.count > 1 else make()


def fit(
    model: DoubleHeadRCNN,
    make_batches: Callable[[int], tf.data.Dataset],
    *,
    step: int,
    length: Length,
    callbacks: Sequence[keras.callbacks.Callback],
    dataset: CocoDataset,
    plan: Plan,
) -> None:
    """Train until the last step, or until a callback sets `model.stop_training`.

    Args:
        model: compiled.
        make_batches: from a step to the batches from there on.
        step: steps done.
        length: of the run.
        callbacks: Keras callbacks.
        dataset, plan: the images of every step; name the one that cannot be read.

    Raises:
        DataError: naming an image that cannot be read, or saying how the pipeline in a file fails.
    """
    for stretch in stretches(step, length):
        try:
            model.fit(
                make_batches(stretch.start_step),
                epochs=stretch.last_epoch,
                initial_epoch=stretch.first_epoch,
                steps_per_epoch=stretch.steps,
                callbacks=list(callbacks),
                shuffle=False,  # the plan is shuffled
                verbose=0,
            )
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
            bad = fault_of(error) or find_bad_image(dataset, np.unique(plan.epoch(0)))
            if bad:
                raise DataError(bad) from error
            raise
        if model.stop_training:
            return

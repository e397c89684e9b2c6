"""The learning rate: linear warm-up, then the drops of the 1x recipe or a cosine; and how long training is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from dh_keras.config.schema import TrainConfig


@keras.saving.register_keras_serializable(package="dh_keras")
class WarmupStepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from warmup_factor * lr to lr, multiplied by drop_factor at every drop.

    Args:
        lr: learning rate after the warm-up.
        warmup_steps: steps until lr is reached; 0 starts with it.
        warmup_factor: share of lr at step 0.
        drops: steps at which the rate drops, counted from 0.
        drop_factor: what it is multiplied with.
    """

    def __init__(self, *, lr: float, warmup_steps: int, warmup_factor: float, drops: Sequence[int], drop_factor: float):
        super().__init__()
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        self.drops = list(drops)
        self.drop_factor = drop_factor

    def __call__(self, step: Any) -> tf.Tensor:
        """Learning rate, float32 scalar, for the update that follows `step` earlier ones."""
        step = tf.cast(step, tf.float32)
        progress = tf.minimum(step / max(self.warmup_steps, 1), 1.0) if self.warmup_steps else 1.0
        warmup = self.warmup_factor + (1.0 - self.warmup_factor) * progress
        num_drops = tf.reduce_sum(tf.cast(step >= tf.constant(self.drops, tf.float32), tf.float32))
        return self.lr * warmup * self.drop_factor**num_drops

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "lr": self.lr,
            "warmup_steps": self.warmup_steps,
            "warmup_factor": self.warmup_factor,
            "drops": self.drops,
            "drop_factor": self.drop_factor,
        }


class Length(NamedTuple):
    """How long training is.

    Args:
        steps: optimiser steps in all.
        epochs: epochs in all; the last one may be shorter.
        steps_per_epoch: of one pass over the training images.
    """

    steps: int
    epochs: int
    steps_per_epoch: int


def training_length(config: TrainConfig, steps_per_epoch: int) -> Length:
    """Turn `epochs` or `steps`, whichever the config gives, into both."""
    if config.steps is not None:
        return Length(config.steps, -(-config.steps // steps_per_epoch), steps_per_epoch)
    return Length(config.epochs * steps_per_epoch, config.epochs, steps_per_epoch)


def make_schedule(
    config: TrainConfig, *, batch_size: int, steps_per_epoch: int
) -> WarmupStepSchedule | keras.optimizers.schedules.CosineDecay:
    """Learning rate schedule for the images of a step, by the linear rule lr * batch_size / base_batch_size.

    A cosine falls from the end of the warm-up to zero at the end of training.
    """
    lr = config.lr * batch_size / config.base_batch_size
    if config.schedule == "cosine":
        warmup, steps = config.warmup_steps, training_length(config, steps_per_epoch).steps
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=config.warmup_factor * lr if warmup else lr,
            decay_steps=max(steps - warmup, 1),
            warmup_target=lr if warmup else None,
            warmup_steps=warmup,
        )
    unit = 1 if config.steps is not None else steps_per_epoch
    return WarmupStepSchedule(
        lr=lr,
        warmup_steps=config.warmup_steps,
        warmup_factor=config.warmup_factor,
        drops=[drop * unit for drop in config.drops],
        drop_factor=config.drop_factor,
    )


def describe_schedule(config: TrainConfig, length: Length, *, batch_size: int) -> str:
    """A line that says what is going to be done.

    Args:
        config: of the training.
        length: of it.
        batch_size: images that go through the network together, of which config.accumulate make a step.
    """
    images, per_epoch = batch_size * config.accumulate, length.steps_per_epoch
    rate = config.lr * images / config.base_batch_size
    parts = f" ({config.accumulate} of {batch_size} for one step)" if config.accumulate > 1 else ""
    drops = [drop * (per_epoch if config.steps is None else 1) for drop in config.drops]
    after = "then a cosine to 0" if config.schedule == "cosine" else f"drops after steps {drops}"
    return (
        f"schedule: {length.steps} steps ({length.epochs} epochs of {per_epoch}) of {config.optimizer}, lr "
        f"{config.lr:g} for a batch of {config.base_batch_size} -> {rate:g} for a batch of {images}{parts}, warm-up "
        f"{config.warmup_steps} steps, {after}"
    )

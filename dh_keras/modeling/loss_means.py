"""Means of the losses, as Keras reports them: of an epoch so far, or of an evaluation."""

from collections.abc import Iterable

import keras
import tensorflow as tf

from dh_keras.errors import ConfigError


class LossMeans:
    """A Keras mean for each loss and for their weighted total, "loss".

    It is no container that Keras looks into: what it keeps is no weight of the model and in none of its files.

    Args:
        names: of the losses that are known before the first step; others get their mean when they are first seen.
    """

    def __init__(self, names: Iterable[str]):
        self.metrics = {name: keras.metrics.Mean(name=name) for name in ("loss", *names)}

    def update(self, losses: dict[str, tf.Tensor], images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Count the losses of a batch of so many images, int32 []; the means so far, float32 [] each.

        Raises:
            ConfigError: for a loss that is first seen on one of several replicas, where no mean can be made.
        """
        self._make_means_of(losses.keys() - self.metrics.keys())
        for name, loss in losses.items():
            self.metrics[name].update_state(loss, sample_weight=images)
        return {name: metric.result() for name, metric in self.metrics.items()}

    def _make_means_of(self, names: Iterable[str]) -> None:
        names = sorted(names)
        if names and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ConfigError(
                f"compute_losses returned {', '.join(names)}, of which `loss_weights` says nothing; on several "
                "replicas give each a weight there, such as 1.0"
            )
        with tf.init_scope():
            self.metrics |= {name: keras.metrics.Mean(name=name) for name in names}

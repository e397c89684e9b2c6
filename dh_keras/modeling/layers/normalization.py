"""The four kinds of normalisation that a convolution can be followed by, and what is left of one that was folded."""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.constants import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, GROUP_NORM_GROUPS

# A layer's `norm` when there is none: its convolution has a bias instead. See `folding.py`.
FOLDED = "folded"

_at_rest = ContextVar("moving statistics are at rest", default=False)


@contextlib.contextmanager
def statistics_at_rest() -> Iterator[None]:
    """Norms that are called meanwhile in this thread normalise as ever, but leave their moving statistics alone."""
    token = _at_rest.set(True)
    try:
        yield
    finally:
        _at_rest.reset(token)


@keras.saving.register_keras_serializable(package="dh_keras")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation over [N, H, W, C] through TensorFlow's fused kernel.

    The same values as `keras.layers.BatchNormalization`, in less than half the time on a CPU, except that the moving
    variance takes the unbiased batch variance, as PyTorch's does. A layer with `trainable=False` uses its moving
    statistics even when `training=True`.

    Examples:
        >>> features = keras.Input([14, 14, 32])
        >>> keras.Model(features, FusedBatchNormalization(epsilon=1e-5)(features)).output.shape
        (None, 14, 14, 32)
    """

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Make a vector that stays float32 under mixed precision."""
        return super().add_weight(*args, **{**kwargs, "autocast": False})

    def uses_batch(self, training: bool | None) -> bool:
        """Whether it normalises by the statistics of the batch; otherwise it is a multiply-add."""
        return bool(training) and self.trainable

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """What it multiplies each channel by and then adds when it uses its moving statistics, float32 [C] each."""
        scale = self.gamma.value * tf.math.rsqrt(self.moving_variance.value + self.epsilon)
        return scale, self.beta.value - self.moving_mean.value * scale

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalise float [N, H, W, C]; same shape and dtype."""
        use_batch = self.uses_batch(training)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma.value,
            self.beta.value,
            mean=self.moving_mean.value,
            variance=self.moving_variance.value,
            epsilon=self.epsilon,
            is_training=use_batch,
            exponential_avg_factor=1.0 - self.momentum if use_batch else 1.0,
        )
        if use_batch and not _at_rest.get():
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return outputs


@keras.saving.register_keras_serializable(package="dh_keras")
class SyncBatchNormalization(FusedBatchNormalization):
    """Batch normalisation whose statistics are those of the pixels of all replicas, each pixel counting the same.

    So replicas with different numbers of RoIs get what one device gets from all of them. On one replica it is its base
    class. One sum over replicas carries a layer's count, sums and sums of squares.

    Examples:
        >>> features = keras.Input([14, 14, 32])
        >>> keras.Model(features, SyncBatchNormalization(epsilon=1e-5)(features)).output.shape
        (None, 14, 14, 32)
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalise float [N, H, W, C]; same shape and dtype."""
        context = tf.distribute.get_replica_context()
        if not self.uses_batch(training) or context is None or context.num_replicas_in_sync == 1:
            return super().call(inputs, training=training)
        mean, variance, count = self._global_moments(tf.cast(inputs, tf.float32), context)
        self._move_statistics(mean, variance * count / tf.maximum(count - 1.0, 1.0))
        scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
        outputs = (tf.cast(inputs, tf.float32) - mean) * scale + self.beta.value
        return tf.cast(outputs, inputs.dtype)

    def _move_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Let the moving statistics follow those of a batch, float32 [C] each, the variance unbiased."""
        if _at_rest.get():
            return
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving.value * self.momentum + value * (1.0 - self.momentum))

    def _global_moments(self, inputs: tf.Tensor, context: tf.distribute.ReplicaContext) -> tuple[tf.Tensor, ...]:
        """Mean and biased variance [C], and the number of pixels."""
        # Squares of differences from a value near the mean do not cancel; the moving mean is the same everywhere.
        origin = tf.stop_gradient(self.moving_mean.value)
        shifted = inputs - origin
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
        sums = [tf.reduce_sum(shifted, [0, 1, 2]), tf.reduce_sum(shifted * shifted, [0, 1, 2]), count[None]]
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat(sums, axis=0))
        channels = inputs.shape[-1]
        total, total_squared, count = tf.split(summed, [channels, channels, 1])
        offset = total / count
        variance = tf.maximum(total_squared / count - offset * offset, 0.0)
        return origin + offset, variance, count


def make_norm(norm: str, channels: int, *, zero_gamma: bool = False, name: str = "norm") -> keras.layers.Layer | None:
    """Build the normalisation that follows a convolution.

    Args:
        norm: "batch"; "frozen", batch norm whose four vectors never change; "sync", batch norm with statistics over
            all replicas; "group", 32 groups (or the largest divisor of both 32 and channels); or `FOLDED`.
        channels: number of channels.
        zero_gamma: start with a scale of zero instead of one; a frozen norm, which could never leave it, does not.
        name: name of the layer.

    Returns:
        The layer, or None for `FOLDED`.
    """
    if norm == FOLDED:
        return None
    gamma = "zeros" if zero_gamma and norm != "frozen" else "ones"
    settings = {"epsilon": BATCH_NORM_EPSILON, "gamma_initializer": gamma, "name": name}
    batch_settings = {"momentum": BATCH_NORM_MOMENTUM, **settings}
    if norm == "batch":
        return FusedBatchNormalization(**batch_settings)
    if norm == "frozen":
        return FusedBatchNormalization(trainable=False, **batch_settings)
    if norm == "sync":
        return SyncBatchNormalization(**batch_settings)
    if norm == "group":
        groups = math.gcd(GROUP_NORM_GROUPS, channels)
        return keras.layers.GroupNormalization(groups=groups, **settings)
    raise ValueError(f"`norm` must be batch, frozen, sync or group, got {norm!r}")

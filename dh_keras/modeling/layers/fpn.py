"""Feature pyramid network (Lin et al. 2017): C2..C5 to P2..P6."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.constants import ROI_LEVELS
from dh_keras.modeling.layers.resnet import STAGES
from dh_keras.modeling.ops.convolution import convolve_with


@keras.saving.register_keras_serializable(package="dh_keras")
class FPN(keras.layers.Layer):
    """Lateral 1x1 convolutions, nearest-neighbour top-down sums, 3x3 output convolutions, and P6 as a subsample of P5.

    Args:
        channels: channels of every level.

    Examples:
        >>> features = {f"C{level}": keras.Input([None, None, 4 * level], name=f"C{level}") for level in range(2, 6)}
        >>> pyramid = FPN(channels=16)(features)
        >>> model = keras.Model(features, pyramid)
        >>> sorted(model.output), model.output["P3"].shape[-1]
        (['P2', 'P3', 'P4', 'P5', 'P6'], 16)
    """

    def __init__(self, *, channels: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels
        self.laterals = [keras.layers.Conv2D(channels, 1, name=f"lateral_{stage.lower()}") for stage in STAGES]
        self.outputs = [
            keras.layers.Conv2D(channels, 3, padding="same", name=f"output_{level.lower()}") for level in ROI_LEVELS
        ]

    def build(self, input_shape: dict[str, tuple]) -> None:
        """Create the weights, from the shapes of C2..C5."""
        for stage, lateral, output in zip(STAGES, self.laterals, self.outputs, strict=True):
            lateral.build(input_shape[stage])
            output.build((*input_shape[stage][:-1], self.channels))

    def call(self, features: dict[str, tf.Tensor], training: bool | None = None) -> dict[str, tf.Tensor]:
        """Build the pyramid.

        Args:
            features: "C2".."C5", float [B, H, W, C]; each level half as large as the one before, rounded up.
            training: whether this is part of a training step.

        Returns:
            "P2".."P6", float [B, H, W, channels] with strides 4..64.
        """
        merged = [
            convolve_with(lateral, features[stage], training=training)
            for stage, lateral in zip(STAGES, self.laterals, strict=True)
        ]
        for index in range(len(merged) - 2, -1, -1):
            upsampled = _repeat_twice(_repeat_twice(merged[index + 1], axis=1), axis=2)
            merged[index] += tf.slice(upsampled, [0, 0, 0, 0], tf.shape(merged[index]))
        pyramid = {
            level: convolve_with(output, x, training=training)
            for level, output, x in zip(ROI_LEVELS, self.outputs, merged, strict=True)
        }
        pyramid["P6"] = pyramid["P5"][:, ::2, ::2, :]
        return pyramid


def _repeat_twice(features: tf.Tensor, *, axis: int) -> tf.Tensor:
    """`tf.repeat` along an axis of [B, H, W, C], whose gradient computes no shapes on the device."""
    shape = tf.unstack(tf.shape(features))
    pairs = tf.broadcast_to(tf.expand_dims(features, axis + 1), [*shape[: axis + 1], 2, *shape[axis + 1 :]])
    shape[axis] *= 2
    return tf.reshape(pairs, [*shape[:3], features.shape[-1]])

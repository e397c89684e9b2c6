"""Non-local block of the conv-head (paper, figure 2c; Wang et al. 2018)."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.layers.normalization import make_norm
from dh_keras.modeling.ops.convolution import convolve_with


@keras.saving.register_keras_serializable(package="dh_keras")
class NonLocalBlock(keras.layers.Layer):
    """Grouped attention over the positions of an RoI, added to the input.

    The output convolution starts at zero, so a new block is the identity followed by a ReLU.

    Args:
        channels: width of theta, phi and g.
        groups: number of groups that attend separately; divides channels.
        mode: "dot_product" divides the affinities by the number of positions, "softmax" normalises them.
        norm: normalisation after the output convolution, see `make_norm`.

    Examples:
        >>> features = keras.Input([14, 14, 32])
        >>> attended = NonLocalBlock(channels=16, groups=4, mode="softmax", norm="group")(features)
        >>> pooled = keras.layers.GlobalAveragePooling2D()(attended)
        >>> keras.Model(features, pooled).output.shape
        (None, 32)
    """

    def __init__(self, *, channels: int, groups: int, mode: str, norm: str, **kwargs: Any):
        super().__init__(**kwargs)
        if channels % groups:
            raise ValueError(f"`channels` must be a multiple of `groups`, got {channels} and {groups}")
        if mode not in ("dot_product", "softmax"):
            raise ValueError(f"`mode` must be dot_product or softmax, got {mode!r}")
        self.channels = channels
        self.groups = groups
        self.mode = mode
        self.norm_kind = norm
        self.theta, self.phi, self.g = (
            keras.layers.Conv2D(channels, 1, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01), name=name)
            for name in ("theta", "phi", "g")
        )

    def build(self, input_shape: tuple) -> None:
        """Create the weights; the output has as many channels as the input."""
        for conv in (self.theta, self.phi, self.g):
            conv.build(input_shape)
        self.output_conv = keras.layers.Conv2D(input_shape[-1], 1, kernel_initializer="zeros", name="output_conv")
        self.output_conv.build((*input_shape[:-1], self.channels))
        self.norm = make_norm(self.norm_kind, input_shape[-1])
        if self.norm is not None:
            self.norm.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Float [R, H, W, C] to the same shape."""
        shape = tf.shape(inputs)
        positions = shape[1] * shape[2]

        def convolve(layer: keras.layers.Conv2D) -> tf.Tensor:
            return convolve_with(layer, inputs, training=training)

        def split(features: tf.Tensor) -> tf.Tensor:
            """[R, H, W, channels] to [R, groups, positions, channels / groups]."""
            features = tf.reshape(features, [shape[0], positions, self.groups, self.channels // self.groups])
            return tf.transpose(features, [0, 2, 1, 3])

        affinity = tf.matmul(split(convolve(self.theta)), split(convolve(self.phi)), transpose_b=True)
        scaled = affinity / tf.cast(positions, affinity.dtype)
        softmax = tf.cast(tf.nn.softmax(tf.cast(affinity, tf.float32)), affinity.dtype)
        attention = softmax if self.mode == "softmax" else scaled
        attended = tf.transpose(tf.matmul(attention, split(convolve(self.g))), [0, 2, 1, 3])
        attended = tf.reshape(attended, [shape[0], shape[1], shape[2], self.channels])
        outputs = convolve_with(self.output_conv, attended, training=training)
        if self.norm is not None:
            outputs = self.norm(outputs, training=training)
        return tf.nn.relu(inputs + outputs)

"""Head of the region proposal network (Faster R-CNN, section 3.1), shared by all pyramid levels."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="dh_keras")
class RPNHead(keras.layers.Layer):
    """A 3x3 convolution and ReLU, then objectness and anchor deltas from 1x1 convolutions.

    Args:
        channels: channels of the 3x3 convolution.
        anchors_per_cell: A, number of anchor ratios.
    """

    def __init__(self, *, channels: int, anchors_per_cell: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels
        self.anchors_per_cell = anchors_per_cell

        def conv(filters: int, kernel_size: int, name: str, activation: str | None = None) -> keras.layers.Conv2D:
            return keras.layers.Conv2D(
                filters,
                kernel_size,
                padding="same",
                activation=activation,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                name=name,
            )

        self.conv = conv(channels, 3, "conv", activation="relu")
        self.objectness_predictor = conv(anchors_per_cell, 1, "objectness_predictor")
        self.delta_predictor = conv(4 * anchors_per_cell, 1, "delta_predictor")

    def build(self, input_shape: dict[str, tuple]) -> None:
        """Create the weights, from the shapes of P2..P6."""
        level_shape = next(iter(input_shape.values()))
        self.conv.build(level_shape)
        hidden = (*level_shape[:-1], self.channels)
        self.objectness_predictor.build(hidden)
        self.delta_predictor.build(hidden)

    def call(self, pyramid: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Predict for every anchor of every level.

        Args:
            pyramid: "P2".."P6", float [B, H, W, C].

        Returns:
            objectness_logits and anchor_deltas, dicts by level of float32 [B, H * W * A] and [B, H * W * A, 4] in the
            order of `grid_anchors`.
        """
        objectness_logits, anchor_deltas = {}, {}
        for level, features in pyramid.items():
            hidden = self.conv(features)
            batch = tf.shape(features)[0]
            logits, deltas = self.objectness_predictor(hidden), self.delta_predictor(hidden)
            objectness_logits[level] = tf.cast(tf.reshape(logits, [batch, -1]), tf.float32)
            anchor_deltas[level] = tf.cast(tf.reshape(deltas, [batch, -1, 4]), tf.float32)
        return objectness_logits, anchor_deltas

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "channels": self.channels, "anchors_per_cell": self.anchors_per_cell}

"""Head of the region proposal network (Faster R-CNN, section 3.1), shared by all pyramid levels."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.ops.convolution import convolve_with


@keras.saving.register_keras_serializable(package="dh_keras")
class RPNHead(keras.layers.Layer):
    """A 3x3 convolution and ReLU, then objectness and anchor deltas from 1x1 convolutions, these in float32.

    Args:
        channels: channels of the 3x3 convolution.
        anchors_per_cell: A, number of anchor ratios.
    """

    def __init__(self, *, channels: int, anchors_per_cell: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels
        self.anchors_per_cell = anchors_per_cell

        def conv(filters: int, kernel_size: int, **options: Any) -> keras.layers.Conv2D:
            initializer = keras.initializers.RandomNormal(stddev=0.01)
            return keras.layers.Conv2D(filters, kernel_size, padding="same", kernel_initializer=initializer, **options)

        self.conv = conv(channels, 3, activation="relu", name="conv")
        self.objectness_predictor = conv(anchors_per_cell, 1, dtype="float32", name="objectness_predictor")
        self.delta_predictor = conv(4 * anchors_per_cell, 1, dtype="float32", name="delta_predictor")

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
            hidden = convolve_with(self.conv, features, relu=True)
            batch = tf.shape(features)[0]
            logits, deltas = self.objectness_predictor(hidden), self.delta_predictor(hidden)
            objectness_logits[level] = tf.reshape(logits, [batch, -1])
            anchor_deltas[level] = tf.reshape(deltas, [batch, -1, 4])
        return objectness_logits, anchor_deltas

    def predict_at(self, pyramid: dict[str, tf.Tensor], indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Predict for some anchors of each image.

        The loss looks at a few hundred anchors. The gradient of these predictions does the work of so many cells, that
        of all predictions the work of every cell.

        Args:
            pyramid: "P2".."P6", float [B, H, W, C].
            indices: int32 [B, S], into the anchors of all levels, one level after the other.

        Returns:
            Those entries of what `call` returns: objectness_logits float32 [B, S], anchor_deltas float32 [B, S, 4].
        """
        patches, anchor = self._patches(pyramid, indices)
        kernel = tf.reshape(tf.cast(self.conv.kernel, patches.dtype), [-1, self.channels])
        hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(patches, kernel), tf.cast(self.conv.bias, patches.dtype)))
        hidden = hidden[:, None, None, :]
        shape = tf.concat([tf.shape(indices), [self.anchors_per_cell]], axis=0)
        logits = tf.reshape(self.objectness_predictor(hidden), shape)
        deltas = tf.reshape(self.delta_predictor(hidden), tf.concat([shape, [4]], axis=0))
        return tf.gather(logits, anchor, batch_dims=2), tf.gather(deltas, anchor, batch_dims=2)

    def _patches(self, pyramid: dict[str, tf.Tensor], indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The 3x3 surroundings [B * S, 9 * C] of the anchors' cells, and which anchor of its cell each is, [B, S]."""
        maps = list(pyramid.values())
        sizes = tf.stack([tf.shape(features)[1:3] for features in maps])
        cells = sizes[:, 0] * sizes[:, 1]
        first_anchor = tf.cumsum(cells * self.anchors_per_cell, exclusive=True)
        level = tf.reduce_sum(tf.cast(indices[..., None] >= first_anchor[1:], tf.int32), axis=-1)
        cell, anchor = tf.unstack(
            _divide(indices - tf.gather(first_anchor, level), tf.constant(self.anchors_per_cell)), axis=0
        )
        row, column = tf.unstack(_divide(cell, tf.gather(sizes[:, 1], level)), axis=0)
        # Every map gets a frame of zeros, as its convolution pads it; then all of them are one table of cells.
        framed = sizes + 2
        first_cell = tf.cumsum(framed[:, 0] * framed[:, 1], exclusive=True)
        batch, channels = tf.shape(maps[0])[0], maps[0].shape[-1]
        padded = [tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]]) for features in maps]
        table = tf.concat([tf.reshape(features, [batch, -1, channels]) for features in padded], axis=1)
        width = tf.gather(framed[:, 1], level)
        corner = tf.gather(first_cell, level) + row * width + column
        places = corner[..., None, None] + tf.range(3)[:, None] * width[..., None, None] + tf.range(3)
        return tf.reshape(tf.gather(table, places, batch_dims=1), [-1, 9 * channels]), anchor


def _divide(values: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """Quotient and remainder, stacked."""
    return tf.stack([values // divisor, values % divisor])

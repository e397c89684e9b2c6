"""Head of the region proposal network (Faster R-CNN, section 3.1), shared by all pyramid levels."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.ops.convolution import convolve_with
from dh_keras.modeling.ops.indexing import count_up, map_sizes, on_host, pick


@keras.saving.register_keras_serializable(package="dh_keras")
class RPNHead(keras.layers.Layer):
    """A 3x3 convolution and ReLU, then objectness and anchor deltas from 1x1 convolutions, these in float32.

    Args:
        channels: channels of the 3x3 convolution.
        anchors_per_cell: A, number of anchor ratios.

    Examples:
        >>> pyramid = {level: keras.Input([None, None, 16], name=level) for level in ("P3", "P4")}
        >>> objectness_logits, anchor_deltas = RPNHead(channels=16, anchors_per_cell=3)(pyramid)
        >>> model = keras.Model(pyramid, {"objectness": objectness_logits["P3"], "deltas": anchor_deltas["P3"]})
        >>> model.output["deltas"].shape
        (None, None, 4)
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
        batch = tf.shape(next(iter(pyramid.values())))[0]
        of_logits, of_deltas = tf.stack([batch, -1]), tf.stack([batch, -1, 4])
        for level, features in pyramid.items():
            hidden = convolve_with(self.conv, features, relu=True)
            logits, deltas = self.objectness_predictor(hidden), self.delta_predictor(hidden)
            objectness_logits[level] = tf.reshape(logits, of_logits)
            anchor_deltas[level] = tf.reshape(deltas, of_deltas)
        return objectness_logits, anchor_deltas

    def predict_at(self, pyramid: dict[str, tf.Tensor], indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Predict for some anchors of each image.

        The loss looks at a few hundred anchors. The gradient of these predictions does the work of so many cells, that
        of all predictions the work of every cell.

        Args:
            pyramid: "P2".."P6", float [B, H, W, C].
            indices: integers [B, S], into the anchors of all levels, one level after the other.

        Returns:
            Those entries of what `call` returns: objectness_logits float32 [B, S], anchor_deltas float32 [B, S, 4].
        """
        patches, anchor = self._patches(pyramid, tf.cast(indices, tf.int64))
        kernel = tf.reshape(tf.cast(self.conv.kernel, patches.dtype), [-1, self.channels])
        hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(patches, kernel), tf.cast(self.conv.bias, patches.dtype)))
        hidden = hidden[:, None, None, :]
        logits = tf.reshape(self.objectness_predictor(hidden), [-1, self.anchors_per_cell])
        deltas = tf.reshape(self.delta_predictor(hidden), [-1, self.anchors_per_cell, 4])
        shape = tf.shape(indices)
        return tf.reshape(pick(logits, anchor), shape), tf.reshape(pick(deltas, anchor), [shape[0], shape[1], 4])

    def _patches(self, pyramid: dict[str, tf.Tensor], indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The 3x3 surroundings [B * S, 9 * C] of the anchors' cells, and which anchor of its cell each is, [B * S]."""
        maps = list(pyramid.values())
        sizes = map_sizes(maps)
        with on_host():
            # Every map gets a frame of zeros, as its convolution pads it; then all of them are one table of cells.
            framed_cells = tf.reduce_prod(sizes + 2, axis=1)
            first_anchor = tf.cumsum(tf.reduce_prod(sizes, axis=1) * self.anchors_per_cell, exclusive=True)
            numbers = tf.stack([first_anchor, sizes[:, 1], tf.cumsum(framed_cells, exclusive=True)], axis=1)
            cells_per_image = tf.reduce_sum(framed_cells)
        level = tf.reduce_sum(tf.cast(indices[..., None] >= numbers[1:, 0], tf.int64), axis=-1)
        numbers = tf.gather(numbers, level)
        first_anchor, width, first_cell = (numbers[..., column] for column in range(3))
        cell, anchor = _divide(indices - first_anchor, self.anchors_per_cell)
        row, column = _divide(cell, width)
        batch, channels = tf.shape(maps[0])[0], maps[0].shape[-1]
        padded = [tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]]) for features in maps]
        table = tf.concat([tf.reshape(features, [batch, -1, channels]) for features in padded], axis=1)
        width += 2
        corner = count_up(batch)[:, None] * cells_per_image + first_cell + row * width + column
        nearby = tf.range(3, dtype=tf.int64)
        places = corner[..., None, None] + nearby[:, None] * width[..., None, None] + nearby
        patches = tf.gather_nd(tf.reshape(table, [-1, channels]), places[..., None])
        return tf.reshape(patches, [-1, 9 * channels]), tf.reshape(anchor, [-1])


def _divide(values: tf.Tensor, divisor: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
    """Quotient and remainder."""
    return values // divisor, values % divisor

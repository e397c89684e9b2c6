"""From 8-bit pixels to the network's input."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.ops.indexing import count_up


@keras.saving.register_keras_serializable(package="dh_keras")
class PixelNormalization(keras.layers.Layer):
    """Order the channels, subtract the mean, divide by the deviation, and set the padding to zero afterwards.

    Args:
        channel_order: order that mean, std and the network use, "rgb" or "bgr"; images arrive as RGB.
        mean: three numbers, in 0..255.
        std: three numbers, in 0..255.

    Examples:
        >>> images, sizes = keras.Input([64, 96, 3], dtype="uint8"), keras.Input([2], dtype="int32")
        >>> normalize = PixelNormalization(channel_order="rgb", mean=[124.0, 116.0, 104.0], std=[58.0, 57.0, 57.0])
        >>> keras.Model([images, sizes], normalize(images, sizes)).output.shape
        (None, 64, 96, 3)
    """

    def __init__(self, *, channel_order: str, mean: Sequence[float], std: Sequence[float], **kwargs: Any):
        super().__init__(**kwargs)
        self.channel_order = channel_order
        self.mean = tuple(mean)
        self.std = tuple(std)

    def call(self, images: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
        """Normalise.

        Args:
            images: uint8 [B, H, W, 3] RGB, padded at the bottom and right.
            image_sizes: int32 [B, 2], (height, width) without the padding.

        Returns:
            float [B, H, W, 3] in the layer's compute dtype; zero in the padding.
        """
        pixels = tf.cast(images, tf.float32)
        if self.channel_order == "bgr":
            pixels = tf.reverse(pixels, axis=[-1])
        pixels = (pixels - tf.constant(self.mean)) / tf.constant(self.std)
        shape = tf.shape(images)
        sizes = tf.cast(image_sizes, tf.float32)[:, None, None, None]
        rows = count_up(shape[1], tf.float32)[:, None, None] < sizes[..., 0]
        columns = count_up(shape[2], tf.float32)[:, None] < sizes[..., 1]
        return tf.cast(tf.where(rows & columns, pixels, 0.0), self.compute_dtype)

"""Pixels to network input, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.layers.pixel_normalization import PixelNormalization

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_channels_are_ordered_then_shifted_and_scaled_and_the_padding_is_zero_afterwards(order):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3)).astype(np.uint8)
    sizes = [(6, 5), (4, 9)]
    expected = np.zeros([2, 6, 9, 3])
    for index, (height, width) in enumerate(sizes):
        for row, column in np.ndindex(height, width):
            red, green, blue = np.float64(images[index, row, column])
            pixel = (red, green, blue) if order == "rgb" else (blue, green, red)
            expected[index, row, column] = [(p - m) / s for p, m, s in zip(pixel, MEAN, STD, strict=True)]
    layer = PixelNormalization(channel_order=order, mean=MEAN, std=STD)
    outputs = layer(images, tf.constant(sizes))
    assert outputs.dtype == tf.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_output_has_the_layers_compute_dtype():
    layer = PixelNormalization(channel_order="rgb", mean=MEAN, std=STD, dtype="mixed_float16")
    outputs = layer(np.full([1, 2, 3, 3], 255, np.uint8), tf.constant([[2, 2]]))
    assert outputs.dtype == tf.float16
    np.testing.assert_allclose(outputs[0, 0], [[122.5, 58.75, 45], [122.5, 58.75, 45], [0, 0, 0]], rtol=1e-3)

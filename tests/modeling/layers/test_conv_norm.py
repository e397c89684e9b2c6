"""The convolution brick against plain NumPy, at sizes where padding on one side only would show."""

import numpy as np
import pytest
from numpy_reference import batch_norm, conv2d, conv_norm, group_norm, random_input, randomise, relu

from dh_keras.modeling.layers.conv_norm import ConvNorm


@pytest.mark.parametrize("size", [(9, 7), (8, 6), (5, 12)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2), (5, 3)])
def test_convolution_pads_every_side_alike(kernel_size, stride, size):
    layer = ConvNorm(filters=4, kernel_size=kernel_size, stride=stride, norm="batch", relu=False)
    layer.build((None, None, None, 3))
    w = randomise(layer)
    x = random_input(2, *size, 3)
    expected = conv_norm(w, layer, x, stride=stride)
    assert expected.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 4)
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_relu_comes_last_and_training_reaches_the_norm(training):
    layer = ConvNorm(filters=4, kernel_size=3, stride=2, norm="batch", relu=True)
    layer.build((None, None, None, 3))
    w = randomise(layer)
    x = random_input(2, 9, 6, 3)
    convolved = conv2d(x, w(layer.conv.kernel), stride=2)
    expected = relu(batch_norm(w, layer.norm, convolved, training=training))
    np.testing.assert_allclose(layer(x, training=training), expected, atol=2e-5)


def test_group_norm_can_follow():
    layer = ConvNorm(filters=48, kernel_size=3, norm="group", relu=False)
    layer.build((None, None, None, 3))
    w = randomise(layer)
    x = random_input(2, 9, 6, 3)
    expected = group_norm(w, layer.norm, conv2d(x, w(layer.conv.kernel)), groups=16)
    np.testing.assert_allclose(layer(x), expected, atol=2e-5)


def test_the_only_weights_are_the_kernel_and_the_norm():
    layer = ConvNorm(filters=4, kernel_size=3, norm="batch", relu=True)
    layer.build((None, None, None, 3))
    shapes = {variable.name: tuple(variable.shape) for variable in layer.variables}
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    assert shapes == {"kernel": (3, 3, 3, 4), **dict.fromkeys(names, (4,))}
    assert len(layer.variables) == 5


def test_a_new_kernel_is_he_normal_over_its_outputs():
    layer = ConvNorm(filters=64, kernel_size=3, norm="batch", relu=True)
    layer.build((None, None, None, 16))
    kernel = layer.conv.kernel.numpy()
    deviation = np.sqrt(2 / (9 * 64))
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
    assert np.abs(kernel).max() > 3 * deviation  # not truncated

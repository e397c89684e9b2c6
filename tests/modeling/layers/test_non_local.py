"""The non-local block against plain NumPy, with gradients against central differences."""

import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import non_local, numerical_gradient, random_input, randomise

from dh_keras.modeling.layers.non_local import NonLocalBlock


def build(channels_in=8, **arguments):
    block = NonLocalBlock(**{"groups": 4, "mode": "dot_product", "norm": "batch"} | arguments)
    block.build((None, None, None, channels_in))
    return block


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["dot_product", "softmax"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_output_equals_the_definition(groups, mode, training):
    block = build(channels=12, groups=groups, mode=mode)
    w = randomise(block)
    x = random_input(3, 5, 4, 8)
    expected = non_local(w, block, x, groups=groups, mode=mode, training=training)
    np.testing.assert_allclose(block(x, training=training), expected, atol=2e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_new_block_is_the_identity_and_a_relu(training):
    block = build(channels=12)
    x = random_input(3, 5, 4, 8)
    np.testing.assert_array_equal(block(x, training=training), np.maximum(x, 0))
    assert all(conv.kernel.numpy().any() for conv in (block.theta, block.phi, block.g))


def test_theta_phi_g_and_output_have_biases_and_the_norm_is_the_only_other_weight():
    block = build(channels=12)
    shapes = {variable.path.split("/", 1)[1]: tuple(variable.shape) for variable in block.trainable_variables}
    assert shapes == {
        **{f"{name}/kernel": (1, 1, 8, 12) for name in ("theta", "phi", "g")},
        **{f"{name}/bias": (12,) for name in ("theta", "phi", "g")},
        "output_conv/kernel": (1, 1, 12, 8),
        "output_conv/bias": (8,),
        "norm/gamma": (8,),
        "norm/beta": (8,),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["dot_product", "softmax"])
def test_gradients_equal_central_differences(mode, training):
    block = build(channels_in=6, channels=4, groups=2, mode=mode)
    w = randomise(block)
    x, upstream = random_input(2, 3, 2, 6), random_input(2, 3, 2, 6, seed=2)
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(block(inputs, training=training) * upstream)
    variables = block.trainable_variables
    actual = tape.gradient(loss, [inputs, *(variable.value for variable in variables)])
    x = np.float64(x)

    def loss_in_numpy():
        return np.sum(non_local(w, block, x, groups=2, mode=mode, training=training) * upstream)

    arrays = [x, *(w(variable) for variable in variables)]
    for gradient, array, name in zip(actual, arrays, ["input", *(v.path for v in variables)], strict=True):
        np.testing.assert_allclose(gradient, numerical_gradient(loss_in_numpy, array), atol=1e-4, err_msg=name)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="multiple of `groups`, got 10 and 4"):
        NonLocalBlock(channels=10, groups=4, mode="dot_product", norm="batch")


def test_an_unknown_mode_is_rejected_by_name():
    with pytest.raises(ValueError, match="dot_product or softmax, got 'gaussian'"):
        NonLocalBlock(channels=12, groups=4, mode="gaussian", norm="batch")

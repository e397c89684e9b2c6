"""The convolution brick against plain NumPy, at sizes where padding on one side only would show."""

import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import batch_norm, conv2d, conv_norm, group_norm, random_input, randomise, relu

from dh_keras.modeling.layers.conv_norm import ConvNorm, run_in_turn
from dh_keras.modeling.precision import layer_precision


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


def chain(norm, *, dtype="float32"):
    """A bottleneck's convolutions, their inputs and a residual; sides are odd, and the channels differ."""
    with layer_precision(dtype):
        convs = [
            ConvNorm(filters=4, kernel_size=1, norm=norm, relu=True),
            ConvNorm(filters=8, kernel_size=3, norm=norm, relu=True),
            ConvNorm(filters=6, kernel_size=1, norm=norm, relu=False),
        ]
    for conv, channels in zip(convs, (6, 4, 8), strict=True):
        conv.build((None, None, None, channels))
        randomise(conv)
    inputs, residual, upstream = (random_input(5, 7, 3, 6, seed=seed) for seed in range(3))
    return convs, [tf.cast(array, convs[0].compute_dtype) for array in (inputs, residual, upstream)]


def one_by_one(convs, inputs, *, training, residual):
    for conv in convs[:-1]:
        inputs = conv(inputs, training=training)
    return convs[-1](inputs, training=training, residual=residual)


def step_of(run, convs, inputs, residual, upstream):
    """Outputs and all gradients in a graph, and how far every moving statistic went."""
    variables = [variable.value for conv in convs for variable in conv.trainable_variables]
    before = [variable.numpy() for conv in convs for variable in conv.non_trainable_variables]

    @tf.function(autograph=False)
    def step(inputs, residual):
        with tf.GradientTape() as tape:
            tape.watch([inputs, residual])
            outputs = run(convs, inputs, training=True, residual=residual)
        return [outputs, *tape.gradient(outputs, [inputs, residual, *variables], output_gradients=upstream)]

    found = [tf.cast(tensor, tf.float32).numpy() for tensor in step(inputs, residual)]
    after = [variable.numpy() for conv in convs for variable in conv.non_trainable_variables]
    return found, [new - old for new, old in zip(after, before, strict=True)]


@pytest.mark.parametrize("norm", ["batch", "sync", "group", "frozen"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 2e-2), ("mixed_float16", 4e-3)])
def test_convolutions_in_turn_have_the_values_gradients_and_statistics_of_one_by_one(norm, dtype, tolerance):
    ours, theirs = (step_of(run, *_flat(chain(norm, dtype=dtype))) for run in (run_in_turn, one_by_one))
    assert len(ours[0]) == 3 + (3 if norm == "frozen" else 9)
    assert all(moved.any() for moved in ours[1]) == (norm != "frozen") or norm == "group"
    for mine, other in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def _flat(made):
    return made[0], *made[1]


@pytest.mark.parametrize(("run", "kept"), [(run_in_turn, 5), (one_by_one, 7)])
def test_between_convolutions_in_turn_only_what_comes_out_of_them_is_kept(run, kept):
    convs, (inputs, residual, upstream) = chain("batch")
    forward = set()

    def step(inputs, residual):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = run(convs, inputs, training=True, residual=residual)
        forward.update(outputs.graph.get_operations())
        return tape.gradient(outputs, [inputs, *(conv.conv.kernel.value for conv in convs)], output_gradients=upstream)

    graph = tf.function(step, autograph=False).get_concrete_function(inputs, residual).graph
    used = {
        tensor.name
        for op in set(graph.get_operations()) - forward
        for tensor in op.inputs
        if tensor.op in forward and tensor.shape.rank == 4 and tensor.shape[:3] == inputs.shape[:3]
    }
    assert len(used) == kept, used

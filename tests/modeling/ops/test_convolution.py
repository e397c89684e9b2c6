"""Our convolution against TensorFlow's and PyTorch's padding, and its gradients against TensorFlow's."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.ops import convolution
from dh_keras.modeling.ops.convolution import conv2d, kernel_gradient
from dh_keras.modeling.ops.machine import traced_for

SHAPES = [(2, 9, 14), (3, 7, 7), (1, 1, 1), (1, 30, 41), (1, 2, 5)]


def random_tensors(*shapes, dtype="float32"):
    random = np.random.default_rng(0)
    return [tf.cast(tf.constant(random.normal(size=shape), tf.float32), dtype) for shape in shapes]


def stock(inputs, kernel, bias=None, residual=None, *, stride, relu):
    """The same from single TensorFlow operations."""
    padding = kernel.shape[0] // 2
    framed = tf.pad(inputs, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    outputs = tf.nn.conv2d(framed, kernel, stride, "VALID")
    outputs = outputs if bias is None else outputs + bias
    outputs = outputs if residual is None else outputs + residual
    return tf.nn.relu(outputs) if relu else outputs


def value_and_gradients(function, terms, upstream, **options):
    def step(terms, upstream):
        with tf.GradientTape() as tape:
            tape.watch(terms)
            outputs = function(*terms, **options)
        return outputs, tape.gradient(outputs, terms, output_gradients=upstream)

    return tf.function(step, autograph=False)(terms, upstream)


def assert_close(ours, theirs, tolerance=1e-5):
    """Equal up to a share of the largest value."""
    theirs = tf.cast(theirs, tf.float32).numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(tf.cast(ours, tf.float32), theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_those_of_the_stock_operations(shape, size, stride):
    outputs = [-(-side // stride) for side in shape[1:]]
    inputs, kernel, bias, residual, upstream = random_tensors(
        (*shape, 3), (size, size, 3, 4), (4,), (shape[0], *outputs, 4), (shape[0], *outputs, 4)
    )
    terms, options = (inputs, kernel, bias, residual), {"stride": stride, "relu": True}
    ours, our_gradients = value_and_gradients(conv2d, terms, upstream, differentiable=True, **options)
    theirs, their_gradients = value_and_gradients(stock, terms, upstream, **options)
    assert_close(ours, theirs)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize(("size", "stride", "relu"), [(1, 1, False), (3, 1, True), (3, 2, False)])
@pytest.mark.parametrize("differentiable", [False, True])
def test_without_bias_or_residual(size, stride, relu, differentiable):
    inputs, kernel, upstream = random_tensors((2, 8, 6, 3), (size, size, 3, 4), (2, 8 // stride, 6 // stride, 4))
    options = {"stride": stride, "relu": relu}
    ours, gradients = value_and_gradients(conv2d, (inputs, kernel), upstream, differentiable=differentiable, **options)
    theirs, expected = value_and_gradients(stock, (inputs, kernel), upstream, **options)
    assert_close(ours, theirs)
    for mine, other in zip(gradients, expected, strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize("overhead", [0.0, 1e9])
def test_both_ways_to_the_kernel_gradient_are_exact_also_for_an_unknown_size(monkeypatch, overhead):
    monkeypatch.setattr(convolution, "FRAME_OVERHEAD", overhead)
    inputs, upstream = random_tensors((2, 11, 6, 3), (2, 11, 6, 5))
    expected = tf.raw_ops.Conv2DBackpropFilter(
        input=inputs, filter_sizes=[3, 3, 3, 5], out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    assert_close(kernel_gradient(inputs, upstream, size=3, stride=1), expected)
    unknown = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None, None, None, 5])]
    traced = tf.function(lambda x, y: kernel_gradient(x, y, size=3, stride=1), unknown, autograph=False)
    assert_close(traced(inputs, upstream), expected)


@pytest.mark.parametrize("size", [1, 3])
def test_no_rois_give_a_kernel_gradient_of_zeros(size):
    gradient = kernel_gradient(tf.zeros([0, 7, 7, 3]), tf.zeros([0, 7, 7, 4]), size=size, stride=1)
    np.testing.assert_array_equal(gradient, np.zeros([size, size, 3, 4], np.float32))


def test_a_kernel_that_is_divided_for_a_cpu_gives_the_same(monkeypatch):
    terms = random_tensors((1, 6, 7, 8), (3, 3, 8, 256), (256,))
    whole = conv2d(*terms, relu=True)
    monkeypatch.setattr(convolution, "CACHED_KERNEL_BYTES", 9 * 8 * 64 * 4)
    graph = tf.function(lambda: conv2d(*terms, relu=True), autograph=False).get_concrete_function()
    assert [op.type for op in graph.graph.get_operations()].count("Conv2D") == 4
    assert_close(graph(), whole, tolerance=1e-6)
    with traced_for("gpu"):
        graph = tf.function(lambda: conv2d(*terms, relu=True), autograph=False).get_concrete_function()
    assert [op.type for op in graph.graph.get_operations()].count("Conv2D") == 1
    assert_close(graph(), whole, tolerance=1e-6)


def test_bfloat16_keeps_its_dtype_and_stays_near(monkeypatch):
    terms = random_tensors((1, 12, 10, 8), (3, 3, 8, 4), (4,), dtype="bfloat16")
    upstream = random_tensors((1, 12, 10, 4), dtype="bfloat16")[0]
    ours, gradients = value_and_gradients(conv2d, terms, upstream, stride=1, relu=True, differentiable=True)
    exact = [tf.cast(term, tf.float32) for term in terms]
    theirs, expected = value_and_gradients(stock, exact, tf.cast(upstream, tf.float32), stride=1, relu=True)
    assert {ours.dtype, *(gradient.dtype for gradient in gradients)} == {tf.bfloat16}
    assert_close(ours, theirs, tolerance=0.02)
    for mine, other in zip(gradients, expected, strict=True):
        assert_close(mine, other, tolerance=0.03)


def test_gradients_are_the_same_when_the_forward_pass_is_recomputed():
    terms = random_tensors((2, 7, 7, 4), (3, 3, 4, 4), (4,))
    upstream = random_tensors((2, 7, 7, 4))[0]

    def twice(inputs, kernel, bias):
        return conv2d(conv2d(inputs, kernel, bias, relu=True, differentiable=True), kernel, bias, differentiable=True)

    kept = value_and_gradients(twice, terms, upstream)
    again = value_and_gradients(tf.recompute_grad(twice), terms, upstream)
    assert_close(again[0], kept[0])
    for mine, other in zip(again[1], kept[1], strict=True):
        assert_close(mine, other)


def test_only_a_training_step_without_a_gpu_has_our_gradient(monkeypatch):
    def kinds(**options):
        def gradient(inputs, kernel):
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                outputs = conv2d(inputs, kernel, **options)
            return tape.gradient(outputs, kernel)

        specs = [tf.TensorSpec([1, 8, 8, 4]), tf.TensorSpec([3, 3, 4, 4])]
        graph = tf.function(gradient, autograph=False).get_concrete_function(*specs).graph
        return {op.type for op in graph.get_operations()}

    assert "Conv2DBackpropFilter" not in kinds(differentiable=True)
    assert "Conv2DBackpropFilter" in kinds(differentiable=False)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU:0"])
    assert "Conv2DBackpropFilter" in kinds(differentiable=True)


def test_strides_on_a_single_image_of_even_size_do_not_write_beyond_their_memory():
    """TensorFlow's own kernel for this gradient does, which the C library notices when it is told to look."""
    script = """
import tensorflow as tf
from dh_keras.modeling.ops.convolution import kernel_gradient
inputs = tf.random.stateless_normal([1, 24, 32, 8], [1, 2])
upstream = tf.random.stateless_normal([1, 12, 16, 16], [3, 4])
expected = tf.einsum("nhwc,nhwf->cf", inputs[:, ::2, ::2], upstream)
for _ in range(20):
    found = kernel_gradient(inputs, upstream, size=1, stride=2)
    tf.debugging.assert_near(found[0, 0], expected, 1e-4, 1e-4)
"""
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-500:]


@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(1, 2, (1, 8, 8)), (3, 1, (2, 7, 7)), (3, 1, (1, 30, 40)), (3, 2, (1, 9, 9))]
)
def test_nothing_is_copied_for_the_kernel_gradient_before_the_gradient_of_the_outputs_is_there(size, stride, shape):
    outputs = [-(-side // stride) for side in shape[1:]]
    specs = [tf.TensorSpec(shape) for shape in ((*shape, 4), (size, size, 4, 6), (shape[0], *outputs, 6))]
    forward = set()

    def step(inputs, kernel, upstream):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = conv2d(inputs, kernel, stride=stride, differentiable=True)
        forward.update(outputs.graph.get_operations())
        return tape.gradient(outputs, kernel, output_gradients=upstream)

    graph = tf.function(step, autograph=False).get_concrete_function(*specs).graph
    upstream = graph.inputs[2].op
    copies = [op for op in set(graph.get_operations()) - forward if op.type in ("MaxPool", "Pad", "StridedSlice")]
    large = [op for op in copies if op.outputs[0].shape.rank == 4]
    assert large
    for op in large:
        assert upstream in before(op), op.name


def before(op):
    """All operations that have run when this one does."""
    found, ahead = set(), [op]
    while ahead:
        op = ahead.pop()
        new = {*(tensor.op for tensor in op.inputs), *op.control_inputs} - found
        found |= new
        ahead += new
    return found

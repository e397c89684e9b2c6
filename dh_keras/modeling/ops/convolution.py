"""Convolution with bias, residual and ReLU as one differentiable operation that is fast on a CPU.

On a CPU the gradient of the kernel is matrix products, which do not depend on how good TensorFlow's own kernel for it
is on a processor. What follows the convolution belongs to the operation so that TensorFlow can still fuse it into the
forward kernel.

Letters: N images or RoIs, H W of the input, h w of the output, C input channels, F filters.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from dh_keras.modeling.ops.machine import for_gpu

# Larger kernels fall out of a core's cache while the forward kernel walks over the map, so they are divided.
CACHED_KERNEL_BYTES = 1_250_000
# Cells that a frame of zeros may add to a map before the products are better made from copies without it.
FRAME_OVERHEAD = 1.25


def conv2d(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    residual: tf.Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = False,
    differentiable: bool = False,
) -> tf.Tensor:
    """Convolve with (size // 2) zeros on every side, as PyTorch does; add the bias and the residual, then the ReLU.

    Args:
        inputs: float [N, H, W, C].
        kernel: float [size, size, C, F], size odd.
        bias: float [F] or None.
        residual: float [N, h, w, F] or None.
        stride: along both axes.
        relu: whether a ReLU ends it.
        differentiable: True for a training step: for a machine without GPU the gradient is then our own. It has no
            second derivative. False leaves nothing but stock operations in the graph, with their own gradients.

    Returns:
        float [N, h, w, F], h = ceil(H / stride), in the inputs' dtype.
    """
    terms = [inputs, kernel, *(term for term in (bias, residual) if term is not None)]
    has_bias = bias is not None

    def forward(inputs: tf.Tensor, kernel: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        added = rest[1:] if has_bias else rest
        return _forward(inputs, kernel, rest[0] if has_bias else None, *added, stride=stride, relu=relu)

    if not differentiable or for_gpu():
        return forward(*terms)

    @tf.custom_gradient
    def convolve(inputs: tf.Tensor, kernel: tf.Tensor, *rest: tf.Tensor):
        outputs = forward(inputs, kernel, *rest)

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            if relu:
                upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
            of_kernel = kernel_gradient(inputs, upstream, size=kernel.shape[0], stride=stride)
            with tf.control_dependencies([of_kernel]):  # so its inputs and copies are gone before the next is there
                gradients = [_input_gradient(inputs, kernel, upstream, stride), of_kernel]
            if has_bias:
                gradients.append(tf.raw_ops.BiasAddGrad(out_backprop=upstream))
            return gradients if len(gradients) == len(terms) else [*gradients, upstream]

        return outputs, gradient

    return convolve(*terms)


def convolve_with(layer: Any, inputs: tf.Tensor, *, relu: bool = False, training: bool | None = None) -> tf.Tensor:
    """`conv2d` with the weights of a Keras convolution that has a bias.

    Args:
        layer: `keras.layers.Conv2D`.
        inputs: float [N, H, W, C].
        relu: whether a ReLU follows.
        training: whether this is part of a training step.
    """
    kernel, bias = tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)
    return conv2d(
        tf.cast(inputs, kernel.dtype),
        kernel,
        bias,
        stride=layer.strides[0],
        relu=relu,
        differentiable=bool(training) and layer.trainable,
    )


def kernel_gradient(inputs: tf.Tensor, upstream: tf.Tensor, *, size: int, stride: int) -> tf.Tensor:
    """Gradient of a convolution's kernel.

    Args:
        inputs: float [N, H, W, C].
        upstream: float [N, h, w, F], gradient of the outputs.
        size: height and width of the kernel.
        stride: of the convolution.

    Returns:
        float [size, size, C, F].
    """
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    with tf.control_dependencies([upstream]):  # or the copies below are made in the forward pass, and kept
        inputs = tf.identity(inputs)
    if stride > 1 and size > 1:  # picking cells for each place costs more than TensorFlow's kernel loses
        return tf.raw_ops.Conv2DBackpropFilter(
            input=_frame(inputs, size),
            filter_sizes=[size, size, channels, filters],
            out_backprop=upstream,
            strides=[1, stride, stride, 1],
            padding="VALID",
        )
    if size == 1:
        # TensorFlow's kernel for these strides writes beyond its memory for a single image of an even size.
        inputs = tf.nn.max_pool2d(inputs, 1, stride, "VALID") if stride > 1 else inputs
        product = _product(tf.reshape(inputs, [-1, channels]), tf.reshape(upstream, [-1, filters]))
        return product[None, None]
    height, width = inputs.shape[1:3]
    frame = size - 1
    framed_is_cheap = None in (height, width) or ((height + frame) * (width + frame) <= FRAME_OVERHEAD * height * width)
    products = (_framed_products if framed_is_cheap else _cropped_products)(inputs, upstream, size)
    return tf.reshape(tf.stack(products), [size, size, channels, filters])


def _forward(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    residual: tf.Tensor | None = None,
    *,
    stride: int,
    relu: bool,
) -> tf.Tensor:
    size, _, channels, filters = kernel.shape
    parts = 1
    while size > 1 and filters % (2 * parts) == 0 and filters // parts > 64:
        if size * size * channels * (filters // parts) * kernel.dtype.size <= CACHED_KERNEL_BYTES:
            break
        parts *= 2
    if parts == 1 or residual is not None or for_gpu():
        return _fused(inputs, kernel, bias, residual, stride=stride, relu=relu)
    biases = [None] * parts if bias is None else tf.split(bias, parts)
    pieces = zip(tf.split(kernel, parts, axis=3), biases, strict=True)
    return tf.concat([_fused(inputs, part, b, None, stride=stride, relu=relu) for part, b in pieces], axis=3)


def _fused(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    residual: tf.Tensor | None,
    *,
    stride: int,
    relu: bool,
) -> tf.Tensor:
    """The sequence that TensorFlow's graph optimiser knows as one kernel."""
    if stride == 1:
        outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    else:  # TensorFlow's "SAME" would pad at the bottom and right only
        outputs = tf.nn.conv2d(_frame(inputs, kernel.shape[0]), kernel, stride, "VALID")
    if bias is not None:
        outputs = tf.nn.bias_add(outputs, bias)
    if residual is not None:
        outputs = outputs + residual
    return tf.nn.relu(outputs) if relu else outputs


def _frame(inputs: tf.Tensor, size: int) -> tf.Tensor:
    """The zeros around a map that a kernel of this size reaches."""
    padding = size // 2
    return tf.pad(inputs, [[0, 0], [padding, padding], [padding, padding], [0, 0]]) if padding else inputs


def _input_gradient(inputs: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, stride: int) -> tf.Tensor:
    # The CPU kernel that is fast does not know explicit padding.
    shape, padding = tf.shape(inputs), kernel.shape[0] // 2 if stride > 1 else 0
    gradient = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.add(shape, [0, 2 * padding, 2 * padding, 0]) if padding else shape,
        filter=kernel,
        out_backprop=upstream,
        strides=[1, stride, stride, 1],
        padding="SAME" if stride == 1 else "VALID",
    )
    return gradient[:, padding : padding + shape[1], padding : padding + shape[2]] if padding else gradient


def _product(inputs: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """[cells, C] and [cells, F] to [C, F]."""
    return tf.matmul(inputs, upstream, transpose_a=True)


def _framed_products(inputs: tf.Tensor, upstream: tf.Tensor, size: int) -> list[tf.Tensor]:
    """One product for each place of the kernel, from a table of all cells that is read from different rows on.

    Both maps get a frame of zeros, so in the table of their cells a place of the kernel is a distance, and wherever
    that leads from one line or image into the next, it meets zeros.
    """
    frame = size - 1
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    table = tf.reshape(_frame(inputs, size), [-1, channels])
    upstream_table = tf.reshape(tf.pad(upstream, [[0, 0], [0, frame], [0, frame], [0, 0]]), [-1, filters])
    width = tf.shape(inputs)[2] + frame
    rows = tf.shape(table)[0] - (frame * width + frame)
    upstream_table = upstream_table[:rows]
    lines, columns = np.mgrid[:size, :size].reshape(2, -1, 1)
    # Where each place's rows begin in the table, in its two dimensions.
    begins = tf.unstack(width * tf.constant(lines * [1, 0], tf.int32) + tf.constant(columns * [1, 0], tf.int32))
    extent = tf.stack([rows, channels])
    return [_product(tf.slice(table, begin, extent), upstream_table) for begin in begins]


def _cropped_products(inputs: tf.Tensor, upstream: tf.Tensor, size: int) -> list[tf.Tensor]:
    """One product for each place of the kernel, from a copy of the cells that it meets."""
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    framed, shape = _frame(inputs, size), tf.shape(inputs)
    upstream = tf.reshape(upstream, [-1, filters])
    products: list[tf.Tensor] = []
    for row in range(size):
        for column in range(size):
            with tf.control_dependencies(products[-1:]):  # one copy at a time
                crop = tf.slice(framed, [0, row, column, 0], shape)
            products.append(_product(tf.reshape(crop, [-1, channels]), upstream))
    return products

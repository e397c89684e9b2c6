"""The layers' arithmetic in plain float64 NumPy, [N, H, W, C], written from the papers.

`Weights` holds float64 copies of a layer's variables; the functions read kernels from there and take strides, modes and
the order of operations from their own arguments, never from the layer.
"""

import numpy as np

EPSILON = 1e-5


class Weights:
    """Float64 values of all variables of a layer; call it with a variable to get its value."""

    def __init__(self, layer):
        self.values = {id(variable): variable.numpy().astype(np.float64) for variable in layer.variables}

    def __call__(self, variable):
        return self.values[id(variable)]


def randomise(layer, seed=0):
    """Give every variable random values: kernels that keep the scale of activations, variances between 0.5 and 1.5."""
    generator = np.random.default_rng(seed)
    for variable in layer.variables:
        shape = tuple(variable.shape)
        if variable.name in ("moving_variance", "gamma"):
            value = generator.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = generator.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            value = generator.normal(size=shape) * 0.3
        variable.assign(value.astype(np.float32))
    return Weights(layer)


def random_input(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relu(x):
    return np.maximum(x, 0.0)


def softmax(x):
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def conv2d(x, kernel, bias=0.0, *, stride=1, padding=None):
    """Cross-correlation with the same number of zeros on every side, by default half a kernel."""
    height, width = kernel.shape[:2]
    padding = height // 2 if padding is None else padding
    x = np.pad(np.float64(x), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    rows = (x.shape[1] - height) // stride + 1
    columns = (x.shape[2] - width) // stride + 1
    output = np.zeros([len(x), rows, columns, kernel.shape[-1]])
    for i, j in np.ndindex(height, width):
        window = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
        output += window[:, :rows, :columns] @ kernel[i, j]
    return output + bias


def max_pool(x, *, size=3, stride=2, padding=1):
    x = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)], constant_values=-np.inf)
    rows, columns = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    output = np.full([len(x), rows, columns, x.shape[-1]], -np.inf)
    for i, j in np.ndindex(rows, columns):
        window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
        output[:, i, j] = window.max(axis=(1, 2))
    return output


def batch_norm(w, norm, x, *, training=False):
    """With the given statistics, or in training with the (biased) statistics of the batch."""
    mean, variance = w(norm.moving_mean), w(norm.moving_variance)
    if training:
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(variance + EPSILON) * w(norm.gamma) + w(norm.beta)


def group_norm(w, norm, x, *, groups):
    count, height, width, channels = x.shape
    grouped = x.reshape(count, height, width, groups, channels // groups)
    mean, variance = grouped.mean(axis=(1, 2, 4), keepdims=True), grouped.var(axis=(1, 2, 4), keepdims=True)
    normalised = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape)
    return normalised * w(norm.gamma) + w(norm.beta)


def conv_norm(w, layer, x, *, stride=1, training=False):
    return batch_norm(w, layer.norm, conv2d(x, w(layer.conv.kernel), stride=stride), training=training)


def residual_block(w, block, x, *, strides=(1, 1, 1), projection=False, training=False):
    """Convolutions with the given strides, ReLU between them and after the sum with the shortcut."""
    assert len(block.convs) == len(strides)
    outputs = x
    for index, (conv, stride) in enumerate(zip(block.convs, strides, strict=True)):
        outputs = conv_norm(w, conv, outputs, stride=stride, training=training)
        if index < len(strides) - 1:
            outputs = relu(outputs)
    shortcut = np.float64(x)
    if projection:
        shortcut = conv_norm(w, block.shortcut, x, stride=int(np.prod(strides)), training=training)
    return relu(outputs + shortcut)


def up_block(w, block, x, *, training=False):
    main = relu(conv_norm(w, block.conv1, x, training=training))
    main = conv_norm(w, block.conv2, main, training=training)
    return relu(main + conv_norm(w, block.shortcut, x, training=training))


def non_local(w, block, x, *, groups, mode="dot_product", training=False):
    """One image and one group at a time, as in figure 2c of the paper."""
    x = np.float64(x)
    theta, phi, g = (conv2d(x, w(conv.kernel), w(conv.bias)) for conv in (block.theta, block.phi, block.g))
    attended = np.zeros_like(g)
    positions, width = x.shape[1] * x.shape[2], g.shape[-1] // groups
    for image in range(len(x)):
        for group in range(groups):
            part = slice(group * width, (group + 1) * width)
            queries, keys, values = (t[image, ..., part].reshape(positions, width) for t in (theta, phi, g))
            attention = queries @ keys.T
            attention = softmax(attention) if mode == "softmax" else attention / positions
            attended[image, ..., part] = (attention @ values).reshape(*x.shape[1:3], width)
    outputs = conv2d(attended, w(block.output_conv.kernel), w(block.output_conv.bias))
    return relu(x + batch_norm(w, block.norm, outputs, training=training))


def dense(w, layer, x):
    return x @ w(layer.kernel) + w(layer.bias)


def predictors(w, layer, vectors, *, num_classes):
    return {
        "class_logits": dense(w, layer.class_predictor, vectors),
        "box_deltas": dense(w, layer.box_predictor, vectors).reshape(len(vectors), num_classes, 4),
    }


def conv_head(w, head, x, *, blocks, non_local_groups, num_classes, training=False):
    """non_local_groups is 0 for a head without non-local blocks."""
    x = up_block(w, head.up_block, x, training=training)
    for index in range(blocks):
        if non_local_groups:
            x = non_local(w, head.non_local_blocks[index], x, groups=non_local_groups, training=training)
        x = residual_block(w, head.bottlenecks[index], x, training=training)
    return predictors(w, head.predictors, x.mean(axis=(1, 2)), num_classes=num_classes)


def fc_head(w, head, x, *, num_classes):
    """The flattened order is rows, columns, channels: the last index runs fastest."""
    vectors = np.float64([[roi[i, j, c] for i, j, c in np.ndindex(roi.shape)] for roi in x])
    vectors = relu(dense(w, head.fc2, relu(dense(w, head.fc1, vectors))))
    return predictors(w, head.predictors, vectors, num_classes=num_classes)


def numerical_gradient(function, array, *, step=1e-6):
    """Central differences of a scalar function with respect to an array that it reads."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        original = array[index]
        array[index] = original + step
        above = function()
        array[index] = original - step
        gradient[index] = (above - function()) / (2 * step)
        array[index] = original
    return gradient

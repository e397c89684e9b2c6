"""Convolution, normalisation and optional ReLU: the brick of the backbone and of the conv-head."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.layers.normalization import FOLDED, FusedBatchNormalization, make_norm
from dh_keras.modeling.layers.recomputation import recomputed
from dh_keras.modeling.ops.convolution import conv2d

# Initializers as their configs: each convolution makes its own, so that no two draw the same numbers.
# Kernels that keep the size of activations through a ReLU (He et al. 2015), counted over a kernel's outputs.
HE_NORMAL = {
    "class_name": "VarianceScaling",
    "config": {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"},
}
# PyTorch's default for a convolution, uniform within 1 / sqrt(inputs).
PYTORCH_DEFAULT = {
    "class_name": "VarianceScaling",
    "config": {"scale": 1.0 / 3.0, "mode": "fan_in", "distribution": "uniform"},
}


@keras.saving.register_keras_serializable(package="dh_keras")
class ConvNorm(keras.layers.Layer):
    """Convolution without bias (with one where the norm is folded), padded by kernel_size // 2 on every side as in
    PyTorch, then a normalisation.

    TensorFlow's "SAME" would pad a strided convolution at the bottom and right only.

    Args:
        filters: output channels.
        kernel_size: height and width of the kernel, odd.
        stride: stride along both axes.
        norm: see `make_norm`.
        relu: whether a ReLU follows.
        zero_gamma: see `make_norm`.
        kernel_initializer: the config of a Keras initializer.

    Examples:
        >>> images = keras.Input([64, 96, 3])
        >>> stem = ConvNorm(filters=8, kernel_size=7, stride=2, norm="batch", relu=True)
        >>> keras.Model(images, stem(images)).output.shape
        (None, 32, 48, 8)
    """

    def __init__(
        self,
        *,
        filters: int,
        kernel_size: int,
        stride: int = 1,
        norm: str,
        relu: bool,
        zero_gamma: bool = False,
        kernel_initializer: dict[str, Any] = HE_NORMAL,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.stride = stride
        self.relu = relu
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=stride,
            padding="same" if stride == 1 else "valid",
            use_bias=norm == FOLDED,
            kernel_initializer=kernel_initializer,
            name="conv",
        )
        self.norm = make_norm(norm, filters, zero_gamma=zero_gamma)

    def build(self, input_shape: tuple) -> None:
        """Create the kernel and the normalisation's vectors."""
        self.conv.build(input_shape)
        if self.norm is not None:
            self.norm.build((*input_shape[:-1], self.filters))

    def call(self, inputs: tf.Tensor, training: bool | None = None, residual: tf.Tensor | None = None) -> tf.Tensor:
        """Convolve and normalise.

        Args:
            inputs: float [N, H, W, C].
            training: whether a trainable norm uses the batch's statistics.
            residual: float, of the outputs' shape: added to them, and a ReLU follows.

        Returns:
            float [N, ceil(H / stride), ceil(W / stride), filters].
        """
        if self.norm_follows(training):
            return self.normalise(self.convolve(inputs, training=training), training=training, residual=residual)
        relu = self.relu or residual is not None
        kernel = tf.convert_to_tensor(self.conv.kernel)
        if self.norm is None:
            bias = tf.convert_to_tensor(self.conv.bias)
        else:  # A norm with fixed statistics is linear: scaling the kernel is less work than scaling the outputs.
            scale, shift = self.norm.scale_and_shift()
            kernel = tf.cast(tf.cast(kernel, tf.float32) * scale, kernel.dtype)
            bias = tf.cast(shift, kernel.dtype)
        return conv2d(inputs, kernel, bias, residual, relu=relu, **self._options(training))

    def norm_follows(self, training: bool | None) -> bool:
        """Whether the norm is a step of its own, `normalise` after `convolve`, and not a part of the convolution."""
        fixed = isinstance(self.norm, FusedBatchNormalization) and not self.norm.uses_batch(training)
        return self.norm is not None and not fixed

    def convolve(self, inputs: tf.Tensor, *, training: bool | None) -> tf.Tensor:
        """Only the convolution."""
        # Cast here too, since Keras does not where this is computed again for the gradients.
        kernel = tf.cast(tf.convert_to_tensor(self.conv.kernel), inputs.dtype)
        return conv2d(inputs, kernel, **self._options(training))

    def normalise(self, convolved: tf.Tensor, *, training: bool | None, residual: tf.Tensor | None = None) -> tf.Tensor:
        """Only what follows the convolution: the norm, the sum and the ReLU."""
        outputs = self.norm(convolved, training=training)
        outputs = outputs if residual is None else outputs + residual
        return tf.nn.relu(outputs) if self.relu or residual is not None else outputs

    def _options(self, training: bool | None) -> dict[str, Any]:
        return {"stride": self.stride, "differentiable": bool(training) and self.trainable}


def run_in_turn(
    convs: Sequence[ConvNorm], inputs: tf.Tensor, *, training: bool | None, residual: tf.Tensor
) -> tf.Tensor:
    """One after the other, the residual added in the last.

    In training, what comes out of a norm between two convolutions is as large as what goes in, so only that is kept,
    and the norm is computed again for the gradients.
    """
    if not norms_follow(convs, training):
        for conv in convs[:-1]:
            inputs = conv(inputs, training=training)
        return convs[-1](inputs, training=training, residual=residual)
    outputs = convolve_in_turn(convs, convs[0].convolve(inputs, training=training))
    return convs[-1].normalise(outputs, training=training, residual=residual)


def norms_follow(convs: Sequence[ConvNorm], training: bool | None) -> bool:
    """Whether this is training, and norms follow the convolutions: what is computed again then is little work."""
    return bool(training) and all(conv.norm_follows(training) for conv in convs)


def convolve_in_turn(convs: Sequence[ConvNorm], convolved: tf.Tensor) -> tf.Tensor:
    """From the output of the first convolution, before its norm, to that of the last, in training."""
    for before, conv in itertools.pairwise(convs):

        def normalise_and_convolve(convolved: tf.Tensor, before: ConvNorm = before, conv: ConvNorm = conv) -> tf.Tensor:
            return conv.convolve(before.normalise(convolved, training=True), training=True)

        convolved = recomputed(normalise_and_convolve)(convolved)
    return convolved

"""The convolution head (paper, figure 2 and section 4.2)."""

import functools
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.layers.conv_norm import PYTORCH_DEFAULT, ConvNorm, norms_follow, run_in_turn
from dh_keras.modeling.layers.non_local import NonLocalBlock
from dh_keras.modeling.layers.predictors import BoxPredictors
from dh_keras.modeling.layers.recomputation import recomputed
from dh_keras.modeling.layers.resnet import BOTTLENECK_EXPANSION, ResidualBlock, run_blocks
from dh_keras.modeling.ops.machine import few_sizes, for_gpu, pad_rows


@keras.saving.register_keras_serializable(package="dh_keras")
class UpBlock(keras.layers.Layer):
    """Residual block that raises the number of channels (figure 2a): 3x3 and 1x1 beside a 1x1 shortcut.

    Args:
        channels: output channels; the 3x3 convolution keeps the input's number.
        norm: see `make_norm`.

    Examples:
        >>> roi_features = keras.Input([7, 7, 32])
        >>> model = keras.Model(roi_features, UpBlock(channels=64, norm="batch")(roi_features))
        >>> model.output.shape
        (None, 7, 7, 64)
    """

    def __init__(self, *, channels: int, norm: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels
        self.norm_kind = norm

    def build(self, input_shape: tuple) -> None:
        """Create the weights."""
        inner = input_shape[-1]
        self.conv1 = ConvNorm(filters=inner, kernel_size=3, norm=self.norm_kind, relu=True, name="conv1")
        self.conv2 = ConvNorm(filters=self.channels, kernel_size=1, norm=self.norm_kind, relu=False, name="conv2")
        self.shortcut = ConvNorm(filters=self.channels, kernel_size=1, norm=self.norm_kind, relu=False, name="shortcut")
        for conv in (self.conv1, self.conv2, self.shortcut):
            conv.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Float [R, H, W, C] to [R, H, W, channels].

        In training the shortcut is computed again for the gradients, from a quarter of what it puts out.
        """
        shortcut = functools.partial(self.shortcut, training=training)
        shortcut = (recomputed(shortcut) if norms_follow([self.shortcut], training) else shortcut)(inputs)
        return run_in_turn([self.conv1, self.conv2], inputs, training=training, residual=shortcut)


@keras.saving.register_keras_serializable(package="dh_keras")
class ConvHead(keras.layers.Layer):
    """Up-block, then `blocks` times a non-local block (if any) and a bottleneck, average pool, predictors.

    Args:
        channels: output channels of every block.
        blocks: number of bottlenecks.
        norm: see `make_norm`.
        non_local_channels: inner width of the non-local blocks; 0 builds none.
        non_local_groups: see `NonLocalBlock`.
        non_local_mode: see `NonLocalBlock`.
        num_classes: K, without background.
        classes: whether it predicts class logits.
        boxes: whether it predicts box deltas.

    Examples:
        >>> roi_features = keras.Input([7, 7, 32])
        >>> head = ConvHead(
        ...     channels=64,
        ...     blocks=2,
        ...     norm="group",
        ...     non_local_channels=32,
        ...     non_local_groups=4,
        ...     non_local_mode="dot_product",
        ...     num_classes=3,
        ...     classes=False,
        ...     boxes=True,
        ... )
        >>> keras.Model(roi_features, head(roi_features)).output["box_deltas"].shape
        (None, 3, 4)
    """

    def __init__(
        self,
        *,
        channels: int,
        blocks: int,
        norm: str,
        non_local_channels: int,
        non_local_groups: int,
        non_local_mode: str,
        num_classes: int,
        classes: bool,
        boxes: bool,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.channels = channels
        # Whether, in training, what an RoI gets depends on the others through statistics over them.
        self.mixes_rois = norm in ("batch", "sync")
        self.up_block = UpBlock(channels=channels, norm=norm, name="up_block")
        self.non_local_blocks = []
        self.bottlenecks = []
        for index in range(blocks):
            if non_local_channels:
                self.non_local_blocks.append(
                    NonLocalBlock(
                        channels=non_local_channels,
                        groups=non_local_groups,
                        mode=non_local_mode,
                        norm=norm,
                        name=f"non_local{index}",
                    )
                )
            self.bottlenecks.append(
                ResidualBlock(
                    filters=channels // BOTTLENECK_EXPANSION,
                    stride_in_1x1=False,  # there is no stride
                    norm=norm,
                    # Small kernels before a norm learn faster, which shows when the head starts from random weights.
                    kernel_initializer=PYTORCH_DEFAULT,
                    name=f"bottleneck{index}",
                )
            )
        self.predictors = BoxPredictors(num_classes=num_classes, classes=classes, boxes=boxes, name="predictors")

    def build(self, input_shape: tuple) -> None:
        """Create the weights, from [R, 7, 7, C]."""
        self.up_block.build(input_shape)
        shape = (*input_shape[:-1], self.channels)
        for block in [*self.non_local_blocks, *self.bottlenecks]:
            block.build(shape)
        self.predictors.build((None, self.channels))

    def call(self, roi_features: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Predict from float [R, 7, 7, C]; see `BoxPredictors`."""
        num_rois = tf.shape(roi_features)[0]
        # A convolution of nothing has the wrong shape on a CPU, its batch statistics are NaN: a blank RoI stands in.
        rows = few_sizes(num_rois) if for_gpu() and not training else tf.maximum(num_rois, 1)
        features = self.feature_map(pad_rows(roi_features, rows), training=training)
        pooled = tf.reduce_mean(tf.cast(features, tf.float32), axis=[1, 2], keepdims=True)
        # Squeezed first: tf2onnx loses track of the axes of a slice that drops some.
        return self.predictors(tf.squeeze(pooled, [1, 2])[:num_rois])

    def feature_map(self, roi_features: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """What is averaged for the predictors: float [R, 7, 7, C] to [R, 7, 7, channels], R at least 1."""
        features = self.up_block(roi_features, training=training)
        for non_local, bottleneck in zip(self.non_local_blocks, self.bottlenecks, strict=False):
            features = bottleneck(non_local(features, training=training), training=training)
        return features if self.non_local_blocks else run_blocks(self.bottlenecks, features, training=training)

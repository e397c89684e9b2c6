"""ResNet backbone (He et al. 2016), of any base width, returning C2..C5."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.layers.conv_norm import HE_NORMAL, ConvNorm, convolve_in_turn, norms_follow, run_in_turn
from dh_keras.modeling.layers.recomputation import recomputed

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STAGES = ("C2", "C3", "C4", "C5")
BOTTLENECK_EXPANSION = 4


@keras.saving.register_keras_serializable(package="dh_keras")
class ResidualBlock(keras.layers.Layer):
    """Bottleneck (1x1, 3x3, 1x1) or basic (3x3, 3x3) residual block with a ReLU after the sum.

    Args:
        filters: inner width; a bottleneck block puts out four times as many channels, a basic one as many.
        bottleneck: which of the two.
        stride: stride of the block.
        stride_in_1x1: a bottleneck block strides in its first 1x1 convolution instead of its 3x3.
        projection: whether the shortcut is a 1x1 convolution and norm, else the identity.
        norm: see `make_norm`.
        identity_start: the last norm starts with a scale of zero, so that a new block passes its shortcut on
            (Goyal et al. 2017, section 5.1).
        kernel_initializer: see `ConvNorm`.

    Examples:
        >>> features = keras.Input([64, 96, 64])
        >>> block = ResidualBlock(filters=16, stride=2, stride_in_1x1=False, projection=True, norm="batch")
        >>> keras.Model(features, block(features)).output.shape
        (None, 32, 48, 64)
    """

    def __init__(
        self,
        *,
        filters: int,
        bottleneck: bool = True,
        stride: int = 1,
        stride_in_1x1: bool,
        projection: bool = False,
        norm: str,
        identity_start: bool = False,
        kernel_initializer: dict[str, Any] = HE_NORMAL,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.output_channels = filters * BOTTLENECK_EXPANSION if bottleneck else filters
        shared = {"norm": norm, "kernel_initializer": kernel_initializer}
        last = {"relu": False, "zero_gamma": identity_start, **shared}
        if bottleneck:
            strides = (stride, 1) if stride_in_1x1 else (1, stride)
            self.convs = [
                ConvNorm(filters=filters, kernel_size=1, stride=strides[0], relu=True, name="conv1", **shared),
                ConvNorm(filters=filters, kernel_size=3, stride=strides[1], relu=True, name="conv2", **shared),
                ConvNorm(filters=self.output_channels, kernel_size=1, name="conv3", **last),
            ]
        else:
            self.convs = [
                ConvNorm(filters=filters, kernel_size=3, stride=stride, relu=True, name="conv1", **shared),
                ConvNorm(filters=filters, kernel_size=3, name="conv2", **last),
            ]
        self.shortcut = None
        if projection:
            self.shortcut = ConvNorm(
                filters=self.output_channels, kernel_size=1, stride=stride, relu=False, name="shortcut", **shared
            )

    def build(self, input_shape: tuple) -> None:
        """Create the weights of the convolutions."""
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], conv.filters)
        if self.shortcut is not None:
            self.shortcut.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Float [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), output_channels]."""
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs, training=training)
        return run_in_turn(self.convs, inputs, training=training, residual=shortcut)


def run_blocks(blocks: Sequence[ResidualBlock], features: tf.Tensor, *, training: bool | None) -> tf.Tensor:
    """Blocks whose shortcuts are the identity, one after the other; float [N, H, W, C] to the same shape.

    In training, what comes out of every second one is not kept: it is computed again for the gradients from what its
    last norm and its sum take, which are kept anyway.
    """
    rest = list(blocks)
    while len(rest) > 1 and all(norms_follow(block.convs, training) for block in rest[:2]):
        features = _run_pair(*rest[:2], features)
        rest = rest[2:]
    for block in rest:
        features = block(features, training=training)
    return features


def _run_pair(first: ResidualBlock, second: ResidualBlock, inputs: tf.Tensor) -> tf.Tensor:
    def pass_on(convolved: tf.Tensor, shortcut: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = first.convs[-1].normalise(convolved, training=True, residual=shortcut)
        return second.convs[0].convolve(features, training=True), features

    convolved = convolve_in_turn(first.convs, first.convs[0].convolve(inputs, training=True))
    convolved, shortcut = recomputed(pass_on)(convolved, inputs)
    convolved = convolve_in_turn(second.convs, convolved)
    return second.convs[-1].normalise(convolved, training=True, residual=shortcut)


@keras.saving.register_keras_serializable(package="dh_keras")
class ResNet(keras.layers.Layer):
    """ResNet-18, -50 or -101 without its classifier.

    Args:
        depth: 18, 50 or 101.
        width: channels of the stem; stage n has bottlenecks of width * 2**n, 64 in the published networks.
        stride_in_1x1: see `ResidualBlock`.
        frozen_stages: n > 0 freezes the stem and the first n stages, weights and statistics.
        norm: see `make_norm`.

    Examples:
        >>> images = keras.Input([64, 96, 3])
        >>> backbone = ResNet(depth=18, width=8, stride_in_1x1=False, frozen_stages=0, norm="batch")
        >>> scores = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(backbone(images)["C5"]))
        >>> keras.Model(images, scores).output.shape
        (None, 10)
    """

    def __init__(self, *, depth: int, width: int, stride_in_1x1: bool, frozen_stages: int, norm: str, **kwargs: Any):
        super().__init__(**kwargs)
        if depth not in BLOCKS_PER_STAGE:
            raise ValueError(f"`depth` must be one of {sorted(BLOCKS_PER_STAGE)}, got {depth}")
        self.stem = ConvNorm(filters=width, kernel_size=7, stride=2, norm=norm, relu=True, name="stem")
        bottleneck = depth > 18
        self.stages = [
            [
                ResidualBlock(
                    filters=width * 2**stage,
                    bottleneck=bottleneck,
                    stride=2 if block == 0 and stage > 0 else 1,
                    stride_in_1x1=stride_in_1x1,
                    # The first block changes the number of channels, except in the first stage of a basic network.
                    projection=block == 0 and (bottleneck or stage > 0),
                    norm=norm,
                    identity_start=True,
                    name=f"{name.lower()}_block{block}",
                )
                for block in range(blocks)
            ]
            for stage, (name, blocks) in enumerate(zip(STAGES, BLOCKS_PER_STAGE[depth], strict=True))
        ]
        if frozen_stages:
            for layer in [self.stem, *(block for stage in self.stages[:frozen_stages] for block in stage)]:
                layer.trainable = False

    def build(self, input_shape: tuple) -> None:
        """Create the weights of all stages."""
        self.stem.build(input_shape)
        shape = (*input_shape[:-1], self.stem.filters)
        for block in (block for stage in self.stages for block in stage):
            block.build(shape)
            shape = (*shape[:-1], block.output_channels)

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        """Shapes of C2..C5 with their channels; height and width are left open."""
        channels = [stage[-1].output_channels for stage in self.stages]
        return {name: (input_shape[0], None, None, count) for name, count in zip(STAGES, channels, strict=True)}

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Compute the pyramid's inputs.

        Args:
            images: float [B, H, W, 3], normalised.
            training: whether unfrozen batch norms use batch statistics.

        Returns:
            "C2".."C5": float [B, ceil(H / s), ceil(W / s), C] with s = 4, 8, 16, 32.
        """
        features = self.stem(images, training=training)
        # Padding with zeros is padding with -inf here: what comes out of a ReLU is never negative.
        features = tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]])
        features = tf.nn.max_pool2d(features, 3, 2, "VALID")
        outputs = {}
        for name, blocks in zip(STAGES, self.stages, strict=True):
            for block in blocks:
                features = block(features, training=training)
            outputs[name] = features
        return outputs

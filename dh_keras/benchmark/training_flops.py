"""Necessary operations of a training step: the forward pass, and of the gradients what some variable needs.

A convolution or matrix product costs as much again for the gradient of its weights, and once more for that of its
inputs where anything before it is trained. Left out are frozen stages, predictions that no loss samples, and whatever
is computed a second time to save memory.
"""

import numpy as np

from dh_keras.benchmark.flops import backbone_stage_multiply_adds, stage_gflop
from dh_keras.config.schema import ModelConfig
from dh_keras.modeling.constants import ROI_LEVELS
from dh_keras.modeling.layers.resnet import BLOCKS_PER_STAGE, BOTTLENECK_EXPANSION

PARTS = ("features", "rpn", "heads")


def training_gflop(
    config: ModelConfig, *, num_classes: int, height: int, width: int, batch: int, rois: dict[str, np.ndarray]
) -> dict[str, float]:
    """Count the operations of one step.

    Args:
        config: the detector.
        num_classes: K, without background.
        height, width: padded image size in pixels.
        batch: number of images.
        rois: float32 [R, 4] of all images, in pixels and unscaled, by the kind of the heads that see them.

    Returns:
        Billions of floating-point operations by the names of `PARTS`; "features" are the backbone and the FPN.
    """
    size = {"height": height, "width": width}
    forward = stage_gflop(config, num_classes=num_classes, batch=batch, rois=rois, **size)
    features = forward["backbone"] + forward["fpn"] + 2e-9 * batch * feature_gradients(config, **size)
    sampled = 2 * 2e-9 * batch * config.rpn.batch_size * rpn_cell_multiply_adds(config)
    heads = 3 * (forward["fc_head"] + forward["conv_head"]) + 2 * forward["roi_align"]
    return dict(zip(PARTS, (features, forward["rpn"] + sampled, heads), strict=True))


def rpn_cell_multiply_adds(config: ModelConfig) -> int:
    """Multiply-adds of the region proposal network at one cell."""
    channels = config.fpn.channels
    return 9 * channels * channels + 5 * len(config.rpn.anchor_ratios) * channels


def feature_gradients(config: ModelConfig, *, height: int, width: int) -> int:
    """Multiply-adds of the gradients of backbone and FPN for one image."""
    frozen = config.backbone.frozen_stages
    stages = backbone_stage_multiply_adds(config.backbone, height=height, width=width)
    backbone = 2 * sum(stages[frozen + 1 :] if frozen else stages) - _unneeded_in_backbone(config, height, width)
    return backbone + _fpn_gradients(config, height, width)


def _cells(height: int, width: int, stage: int) -> int:
    """Cells of C2 for stage 0 .. C5 for stage 3."""
    for _ in range(stage + 2):
        height, width = -(-height // 2), -(-width // 2)
    return height * width


def _unneeded_in_backbone(config: ModelConfig, height: int, width: int) -> int:
    """Gradients of the inputs of the first layers that are trained."""
    backbone, frozen = config.backbone, config.backbone.frozen_stages
    if not frozen:
        return -(-height // 2) * -(-width // 2) * 49 * 3 * backbone.width
    if frozen == len(BLOCKS_PER_STAGE[backbone.depth]):
        return 0
    bottleneck = backbone.depth > 18
    expansion = BOTTLENECK_EXPANSION if bottleneck else 1
    inputs, inner = backbone.width * 2 ** (frozen - 1) * expansion, backbone.width * 2**frozen
    shortcut = _cells(height, width, frozen) * inputs * inner * expansion
    early = bottleneck and not backbone.stride_in_1x1
    return shortcut + _cells(height, width, frozen - early) * inputs * inner * (1 if bottleneck else 9)


def _fpn_gradients(config: ModelConfig, height: int, width: int) -> int:
    """Kernels and inputs of all convolutions, except the inputs of laterals on frozen stages."""
    channels, total = config.fpn.channels, 0
    expansion = BOTTLENECK_EXPANSION if config.backbone.depth > 18 else 1
    for stage in range(len(ROI_LEVELS)):
        cells = _cells(height, width, stage)
        lateral = cells * config.backbone.width * 2**stage * expansion * channels
        output = cells * 9 * channels * channels
        total += 2 * output + (1 if stage < config.backbone.frozen_stages else 2) * lateral
    return total

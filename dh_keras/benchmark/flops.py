"""Necessary multiply-adds of each stage, counted from the settings; a multiply-add is two floating-point operations.

Only the products of convolutions, matrices and interpolation count. Biases, norms, activations, decoding and
suppression do not.

Letters: R RoIs, C channels, K classes.
"""

import math

import numpy as np

from dh_keras.config.schema import RESNET, BackboneConfig, ConvHeadConfig, ModelConfig, RoIConfig
from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import (
    CANONICAL_ROI_LEVEL,
    CANONICAL_ROI_SIZE,
    PYRAMID_LEVELS,
    ROI_LEVELS,
    ROI_OUTPUT_SIZE,
)
from dh_keras.modeling.layers.resnet import BLOCKS_PER_STAGE, BOTTLENECK_EXPANSION
from dh_keras.modeling.variants import VARIANTS, HeadSpec

ROI_CELLS = ROI_OUTPUT_SIZE * ROI_OUTPUT_SIZE


def stage_gflop(
    config: ModelConfig,
    *,
    num_classes: int,
    height: int,
    width: int,
    batch: int,
    rois: dict[str, np.ndarray],
) -> dict[str, float]:
    """Count the necessary operations of one inference step.

    Args:
        config: the detector.
        num_classes: K, without background.
        height, width: padded image size in pixels.
        batch: number of images.
        rois: float32 [R, 4] of all images, in pixels and unscaled, by the kind of the heads that see them.

    Returns:
        Billions of floating-point operations by stage: backbone, fpn, rpn, roi_align, fc_head, conv_head.

    Raises:
        ConfigError: for a backbone of KerasHub.
    """
    heads: dict[str, int] = {}
    for spec in VARIANTS[config.variant].heads:
        heads[spec.kind] = heads.get(spec.kind, 0) + head_multiply_adds(spec, config, num_classes=num_classes)
    counts = {
        "backbone": batch * backbone_multiply_adds(config.backbone, height=height, width=width),
        "fpn": batch * fpn_multiply_adds(config, height=height, width=width),
        "rpn": batch * rpn_multiply_adds(config, height=height, width=width),
        "roi_align": sum(
            roi_align_multiply_adds(boxes, kind=kind, config=config.roi, geometry=config.geometry) * config.fpn.channels
            for kind, boxes in rois.items()
        ),
    }
    counts |= {f"{kind}_head": len(rois[kind]) * heads[kind] if kind in rois else 0 for kind in ("fc", "conv")}
    return {stage: 2e-9 * count for stage, count in counts.items()}


def backbone_multiply_adds(config: BackboneConfig, *, height: int, width: int) -> int:
    """Multiply-adds of the backbone for one image of height x width pixels.

    Raises:
        ConfigError: for a backbone of KerasHub.
    """
    return sum(backbone_stage_multiply_adds(config, height=height, width=width))


def backbone_stage_multiply_adds(config: BackboneConfig, *, height: int, width: int) -> list[int]:
    """The parts of `backbone_multiply_adds`: the stem and the four stages."""
    if config.name != RESNET:
        raise ConfigError(f"key model.backbone.name: operations are counted for {RESNET} only")
    bottleneck = config.depth > 18
    size = _half((height, width))
    totals = [_conv(size, kernel=7, inputs=3, outputs=config.width)]
    size = _half(size)  # the max pool
    channels = config.width
    for stage, blocks in enumerate(BLOCKS_PER_STAGE[config.depth]):
        inner = config.width * 2**stage
        outputs = inner * BOTTLENECK_EXPANSION if bottleneck else inner
        total = 0
        for block in range(blocks):
            input_size = size
            if block == 0 and stage > 0:
                size = _half(size)
            if bottleneck:
                total += _conv(size if config.stride_in_1x1 else input_size, kernel=1, inputs=channels, outputs=inner)
                total += _conv(size, kernel=3, inputs=inner, outputs=inner)
                total += _conv(size, kernel=1, inputs=inner, outputs=outputs)
            else:
                total += _conv(size, kernel=3, inputs=channels, outputs=inner)
                total += _conv(size, kernel=3, inputs=inner, outputs=inner)
            if block == 0 and (bottleneck or stage > 0):
                total += _conv(size, kernel=1, inputs=channels, outputs=outputs)
            channels = outputs
        totals.append(total)
    return totals


def fpn_multiply_adds(config: ModelConfig, *, height: int, width: int) -> int:
    """Multiply-adds of the pyramid for one image: a 1x1 and a 3x3 convolution on each of P2..P5."""
    expansion = BOTTLENECK_EXPANSION if config.backbone.depth > 18 else 1
    sizes = _pyramid_sizes(height, width)
    channels = config.fpn.channels
    return sum(
        _conv(sizes[level], kernel=1, inputs=config.backbone.width * 2**stage * expansion, outputs=channels)
        + _conv(sizes[level], kernel=3, inputs=channels, outputs=channels)
        for stage, level in enumerate(ROI_LEVELS)
    )


def rpn_multiply_adds(config: ModelConfig, *, height: int, width: int) -> int:
    """Multiply-adds of the region proposal network for one image, on P2..P6."""
    channels = config.fpn.channels
    predictions = 5 * len(config.rpn.anchor_ratios)
    return sum(
        _conv(size, kernel=3, inputs=channels, outputs=channels)
        + _conv(size, kernel=1, inputs=channels, outputs=predictions)
        for size in _pyramid_sizes(height, width).values()
    )


def roi_align_multiply_adds(rois: np.ndarray, *, kind: str, config: RoIConfig, geometry: str) -> int:
    """Multiply-adds of RoIAlign per feature channel: one for each cell that a bin takes a share of.

    A fixed number of samples touches four cells each; n adaptive samples along an axis touch n + 1 cells.

    Args:
        rois: float32 [R, 4], pixels of the resized image, unscaled.
        kind: "fc" or "conv", the kind of head, which sets the scale.
        config: scales and sampling.
        geometry: "continuous" or "legacy".
    """
    if config.sampling_ratio > 0:
        return len(rois) * ROI_CELLS * 4 * config.sampling_ratio**2
    rois = np.asarray(rois, np.float64)
    size = rois[:, 2:] - rois[:, :2]
    level = np.floor(CANONICAL_ROI_LEVEL + np.log2(np.sqrt(size.prod(axis=1)) / CANONICAL_ROI_SIZE + 1e-6))
    stride = 2.0 ** np.clip(level, int(ROI_LEVELS[0][1:]), int(ROI_LEVELS[-1][1:]))[:, None]
    scaled = size * (config.conv_scale if kind == "conv" else config.fc_scale)
    cells = np.maximum((scaled - 1.0) / stride, 1.0) if geometry == "legacy" else scaled / stride
    samples = np.ceil(cells / ROI_OUTPUT_SIZE)
    return int(ROI_CELLS * (samples + 1.0).prod(axis=1).sum())


def head_multiply_adds(spec: HeadSpec, config: ModelConfig, *, num_classes: int) -> int:
    """Multiply-adds per RoI of one head, predictions included."""
    predictions = spec.classes * (num_classes + 1) + spec.boxes * 4 * num_classes
    if spec.kind == "fc":
        hidden = config.fc_head.channels
        return ROI_CELLS * config.fpn.channels * hidden + hidden * hidden + hidden * predictions
    tower = conv_tower_multiply_adds(config.conv_head, inputs=config.fpn.channels)
    return tower + config.conv_head.channels * predictions


def conv_tower_multiply_adds(config: ConvHeadConfig, *, inputs: int) -> int:
    """Multiply-adds per RoI of the conv-head before its predictors: up-block, non-local blocks, bottlenecks."""
    channels, inner, attention = config.channels, config.channels // BOTTLENECK_EXPANSION, config.non_local.channels
    up_block = ROI_CELLS * (9 * inputs * inputs + 2 * inputs * channels)
    bottleneck = ROI_CELLS * (2 * channels * inner + 9 * inner * inner)
    # theta, phi, g and the output, then the affinities of all pairs of positions and their weighted sum.
    non_local = ROI_CELLS * 4 * channels * attention + 2 * ROI_CELLS * ROI_CELLS * attention
    return up_block + config.blocks * (bottleneck + non_local)


def _pyramid_sizes(height: int, width: int) -> dict[str, tuple[int, int]]:
    size = _half((height, width))
    sizes = {}
    for level in PYRAMID_LEVELS:
        size = _half(size)
        sizes[level] = size
    return sizes


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(-(-side // 2) for side in size)


def _conv(size: tuple[int, int], *, kernel: int, inputs: int, outputs: int) -> int:
    """Multiply-adds of a square convolution; size is that of its output."""
    return math.prod(size) * kernel * kernel * inputs * outputs

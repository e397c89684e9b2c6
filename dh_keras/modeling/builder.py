"""The only place where a config becomes objects."""

import keras

from dh_keras.config.schema import BackboneConfig, ModelConfig
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.hub_backbone import is_hub, make_hub_backbone, resolve_model
from dh_keras.modeling.keras_hooks import own_random_numbers
from dh_keras.modeling.layers import FPN, ConvHead, FCHead, PixelNormalization, ResNet, RoIAlign, RPNHead
from dh_keras.modeling.losses import loss_weights
from dh_keras.modeling.precision import layer_precision
from dh_keras.modeling.variants import VARIANTS, HeadSpec


def assemble_detector(
    config: ModelConfig,
    *,
    num_classes: int,
    seed: int = 0,
    precision: str | keras.DTypePolicy = "float32",
    recompute_heads: bool = False,
) -> DoubleHeadRCNN:
    """Build a detector with all its variables, from random weights; `backbone.weights` is left to `build_detector`.

    Equal seeds give equal weights. The caller's own random numbers go on as if nothing had been built.

    Args:
        config: the `model` part of a validated config.
        num_classes: K, without background.
        seed: of the initial weights and of the sampling in training.
        precision: Keras dtype policy of the layers.
        recompute_heads: see `DoubleHeadRCNN`.

    Returns:
        A built `DoubleHeadRCNN`, not compiled.

    Examples:
        >>> config = load_config()
        >>> detector = assemble_detector(config.model, num_classes=3)
        >>> detector.num_classes
        3
    """
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
    config = resolve_model(config)
    with layer_precision(precision), own_random_numbers(seed):
        detector = _assemble(config, num_classes, seed, recompute_heads)
        detector.build()
    return detector


def _assemble(config: ModelConfig, num_classes: int, seed: int, recompute_heads: bool) -> DoubleHeadRCNN:
    variant = VARIANTS[config.variant]
    scales = {"fc": config.roi.fc_scale, "conv": config.roi.conv_scale}
    return DoubleHeadRCNN(
        variant=variant,
        num_classes=num_classes,
        geometry=config.geometry,
        normalization=PixelNormalization(
            channel_order=config.channel_order, mean=config.pixel_mean, std=config.pixel_std, name="normalization"
        ),
        backbone=_build_backbone(config.backbone),
        fpn=FPN(channels=config.fpn.channels, name="fpn"),
        rpn_head=RPNHead(channels=config.fpn.channels, anchors_per_cell=len(config.rpn.anchor_ratios), name="rpn_head"),
        roi_align={
            kind: RoIAlign(
                scale=scales[kind],
                sampling_ratio=config.roi.sampling_ratio,
                geometry=config.geometry,
                name=f"{kind}_roi_align",
            )
            for kind in sorted({spec.kind for spec in variant.heads})
        },
        heads={spec.name: _build_head(spec, config, num_classes) for spec in variant.heads},
        rpn=config.rpn,
        roi=config.roi,
        loss_weights=loss_weights(vars(config.loss_weights)),
        score_threshold=config.score_threshold,
        nms_iou=config.nms_iou,
        max_detections=config.max_detections,
        seed=seed,
        recompute_heads=recompute_heads,
        name="double_head_rcnn",
    )


def _build_backbone(config: BackboneConfig) -> keras.layers.Layer:
    if is_hub(config):
        return make_hub_backbone(config)
    return ResNet(
        depth=config.depth,
        width=config.width,
        stride_in_1x1=config.stride_in_1x1,
        frozen_stages=config.frozen_stages,
        norm=config.norm,
        name="backbone",
    )


def _build_head(spec: HeadSpec, config: ModelConfig, num_classes: int) -> keras.layers.Layer:
    predictions = {"num_classes": num_classes, "classes": spec.classes, "boxes": spec.boxes, "name": spec.name}
    if spec.kind == "fc":
        return FCHead(channels=config.fc_head.channels, **predictions)
    non_local = config.conv_head.non_local
    return ConvHead(
        channels=config.conv_head.channels,
        blocks=config.conv_head.blocks,
        norm=config.conv_head.norm,
        non_local_channels=non_local.channels,
        non_local_groups=non_local.groups,
        non_local_mode=non_local.mode,
        **predictions,
    )

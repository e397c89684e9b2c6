"""A new detector whose backbone starts from the weights that the config names."""

import dataclasses

from dh_keras.config.schema import ModelConfig
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.hub_backbone import is_hub, load_hub_weights, resolve_backbone
from dh_keras.pretrained.backbone import load_backbone


def build_detector(
    config: ModelConfig,
    *,
    num_classes: int,
    seed: int = 0,
    pretrained: bool = True,
    precision: str = "float32",
    recompute_heads: bool = False,
) -> DoubleHeadRCNN:
    """Build a detector from random weights and what `backbone.weights` names.

    Args:
        config: the `model` part of a validated config.
        num_classes: K, without background.
        seed: of the initial weights and of the sampling in training.
        pretrained: False leaves `backbone.weights` alone, for a detector whose weights are about to be replaced.
        precision: Keras dtype policy of the layers.
        recompute_heads: see `DoubleHeadRCNN`.

    Returns:
        A built `DoubleHeadRCNN`, not compiled.

    Raises:
        ConfigError, DataError: when the weights cannot be had, or are of another network.

    Examples:
        >>> config = load_config()
        >>> detector = build_detector(config.model, num_classes=3)
        >>> detector.num_classes
        3
    """
    config = dataclasses.replace(config, backbone=resolve_backbone(config.backbone))
    detector = assemble_detector(
        config, num_classes=num_classes, seed=seed, precision=precision, recompute_heads=recompute_heads
    )
    if pretrained and is_hub(config.backbone):
        load_hub_weights(detector.backbone, config.backbone)
    elif pretrained:
        load_backbone(detector.backbone, config)
    return detector

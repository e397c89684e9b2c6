"""A new detector whose backbone starts from the weights that `model.backbone.weights` names."""

import random

import keras

from dh_keras.config.schema import ModelConfig
from dh_keras.errors import ConfigError, DataError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.hub_backbone import is_hub, load_hub_weights, resolve_model
from dh_keras.modeling.layers.resnet import ResNet
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import keras_applications
from dh_keras.pretrained.resnet_names import infer_depth, resnet_rules
from dh_keras.pretrained.tensors import assign_tensors, unused_tensors
from dh_keras.pretrained.torch_file import read_torch_file

IMAGENET = "imagenet"
TORCHVISION_UNUSED = (r".*\.num_batches_tracked", r"fc\.weight", r"fc\.bias")


def build_detector(
    config: ModelConfig,
    *,
    num_classes: int,
    seed: int | None = None,
    pretrained: bool = True,
    precision: str | keras.DTypePolicy | None = None,
    recompute_heads: bool = False,
) -> DoubleHeadRCNN:
    """Build a detector from random weights and what `backbone.weights` names.

    Args:
        config: the `model` part of a validated config.
        num_classes: K, without background.
        seed: of the initial weights and of the sampling in training; None draws one from Python's random numbers, as
            Keras' own layers do, so that `keras.utils.set_random_seed` decides.
        pretrained: False leaves `backbone.weights` alone, for a detector whose weights are about to be replaced.
        precision: Keras dtype policy of the layers; None takes the one that `keras.config.set_dtype_policy` has set.
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
    config = resolve_model(config)
    seed = random.randrange(2**32) if seed is None else seed
    precision = keras.config.dtype_policy() if precision is None else precision
    detector = assemble_detector(
        config, num_classes=num_classes, seed=seed, precision=precision, recompute_heads=recompute_heads
    )
    if pretrained and is_hub(config.backbone):
        load_hub_weights(detector.backbone, config.backbone)
    elif pretrained:
        load_backbone(detector.backbone, config)
    return detector


def load_backbone(backbone: ResNet, config: ModelConfig) -> None:
    """Replace a built backbone's random weights by those that the config names, if any.

    Args:
        backbone: built from the config.
        config: `backbone.weights` is "imagenet", or the path of a ResNet .pth file with torchvision's names. Which
            pixels and strides such a file was trained with cannot be seen in it and is up to the config.

    Raises:
        ConfigError: when the rest of the config does not go with the weights.
        DataError: when they cannot be downloaded or read, or are of another network.
    """
    weights = config.backbone.weights
    if weights is None:
        return
    if config.backbone.norm == "group":
        raise ConfigError(
            "key model.backbone.norm: expected frozen, batch or sync with model.backbone.weights, got group"
        )
    if weights == IMAGENET:
        keras_applications.require_imagenet_settings(config)
        tensors = keras_applications.download_imagenet_tensors(config.backbone.depth)
        rules = keras_applications.application_rules(config.backbone.depth)
        assign_tensors(tensors, rules, variables_by_path(backbone), source=weights)
        return
    tensors = read_torch_file(weights).tensors
    depth = infer_depth(tensors, "", weights)
    if depth != config.backbone.depth:
        raise DataError(f"{weights}: is a ResNet-{depth}, but model.backbone.depth is {config.backbone.depth}")
    rules = resnet_rules(depth, prefix="", target="")
    unused_tensors(tensors, rules, unused=TORCHVISION_UNUSED, source=weights)
    assign_tensors(tensors, rules, variables_by_path(backbone), source=weights)

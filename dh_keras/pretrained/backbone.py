"""Initial weights of the backbone: what `model.backbone.weights` names."""

from dh_keras.config.schema import ModelConfig
from dh_keras.errors import ConfigError, DataError
from dh_keras.modeling.layers.resnet import ResNet
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import keras_applications
from dh_keras.pretrained.resnet_names import infer_depth, resnet_rules
from dh_keras.pretrained.tensors import assign_tensors, unused_tensors
from dh_keras.pretrained.torch_file import read_torch_file

IMAGENET = "imagenet"
TORCHVISION_UNUSED = (r".*\.num_batches_tracked", r"fc\.weight", r"fc\.bias")


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

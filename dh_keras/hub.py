"""What `model.backbone.name: keras_hub:...` names, and the weights of KerasHub's presets. KerasHub is optional."""

import dataclasses
import difflib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import keras

from dh_keras.config import HUB_PREFIX, BackboneConfig
from dh_keras.data.images import one_line
from dh_keras.errors import ConfigError
from dh_keras.layers.hub_backbone import HubBackbone, cut_network

# What a backbone's config holds that is no argument of the network itself.
NOT_ARCHITECTURE = ("name", "trainable", "dtype")
INPUT_SHAPE_NAMES = ("image_shape", "input_shape")


def is_hub(config: BackboneConfig) -> bool:
    """Whether the backbone is one of KerasHub."""
    return config.name.startswith(HUB_PREFIX)


def resolve_backbone(config: BackboneConfig) -> BackboneConfig:
    """Replace the name of a preset by its class, arguments and weights, so that a run needs no download to be read.

    Args:
        config: any; one that names no preset is returned as it is.

    Returns:
        A config whose `name` is "resnet" or "keras_hub:CLASS".

    Raises:
        ConfigError: when KerasHub is missing, knows no such name, or cannot get the preset.
    """
    if not is_hub(config):
        return config
    keras_hub = _import_keras_hub()
    name = config.name.removeprefix(HUB_PREFIX)
    if name in pyramid_backbones(keras_hub):
        return config
    model = _load_preset(name, config.hub_arguments or {}, load_weights=False)
    arguments = {key: value for key, value in model.get_config().items() if key not in NOT_ARCHITECTURE}
    arguments |= {key: [None, None, 3] for key in INPUT_SHAPE_NAMES if key in arguments}
    return dataclasses.replace(
        config,
        name=f"{HUB_PREFIX}{type(model).__name__}",
        hub_arguments=_as_yaml(arguments),
        weights=config.weights or name,
    )


def make_hub_backbone(config: BackboneConfig) -> HubBackbone:
    """Build the layer of a resolved config, with random weights.

    Raises:
        ConfigError: when the arguments or the strides do not fit.
    """
    class_name, arguments = config.name.removeprefix(HUB_PREFIX), config.hub_arguments or {}
    if config.norm == "group":
        raise ConfigError("key model.backbone.norm: expected frozen, batch or sync with a KerasHub backbone, got group")
    if arguments.get("data_format", "channels_last") != "channels_last":
        raise ConfigError("key model.backbone.hub_arguments.data_format: expected channels_last")
    try:
        return HubBackbone(
            class_name=class_name,
            arguments=arguments,
            frozen_stages=config.frozen_stages,
            norm=config.norm,
            name="backbone",
        )
    except ValueError as error:
        names = ", ".join(list(inspect.signature(_hub_class(class_name).__init__).parameters)[1:])
        fitting = ", ".join(pyramid_backbones(_import_keras_hub()))
        raise ConfigError(
            f"key model.backbone.hub_arguments: {one_line(error)}; its arguments are {names}; "
            f"backbones with pyramid outputs for images of any size are {fitting}"
        ) from error


def load_hub_weights(backbone: HubBackbone, config: BackboneConfig) -> None:
    """Replace random weights by those of the preset that `config.weights` names, if any.

    Raises:
        ConfigError: when it cannot be had, or is of another network.
    """
    if config.weights is None:
        return
    network = cut_network(_load_preset(config.weights, {}, load_weights=True))
    given, ours = network.get_weights(), backbone.network.get_weights()
    if [array.shape for array in given] != [array.shape for array in ours]:
        raise ConfigError(f"key model.backbone.weights: {config.weights} is of another network than {config.name}")
    backbone.network.set_weights(given)


def pyramid_backbones(keras_hub: ModuleType) -> list[str]:
    """Names of the classes in `keras_hub.models` whose outputs are a pyramid, for images of any size."""
    base = keras_hub.models.FeaturePyramidBackbone
    classes = inspect.getmembers(keras_hub.models, inspect.isclass)
    return [name for name, value in classes if issubclass(value, base) and _takes_any_size(value)]


def _takes_any_size(backbone_class: type) -> bool:
    parameters = inspect.signature(backbone_class.__init__).parameters
    return any(parameters[name].default == (None, None, 3) for name in INPUT_SHAPE_NAMES if name in parameters)


def _load_preset(name: str, arguments: dict[str, Any], *, load_weights: bool) -> keras.Model:
    keras_hub = _import_keras_hub()
    classes = pyramid_backbones(keras_hub)
    presets = sorted({preset for known in classes for preset in _hub_class(known).presets})
    if name not in presets and "/" not in name and not Path(name).is_dir():
        close = difflib.get_close_matches(name, presets, n=3) or presets[:3]
        raise ConfigError(
            f"key model.backbone.name: KerasHub has no backbone {name!r} with pyramid outputs for images of any "
            f"size; expected {HUB_PREFIX}NAME with one of {', '.join(classes)}, "
            f"or a preset of theirs such as {', '.join(close)}"
        )
    try:
        return keras_hub.models.FeaturePyramidBackbone.from_preset(name, load_weights=load_weights, **arguments)
    except Exception as error:  # no network, no such file, not a preset of a pyramid backbone, wrong arguments
        raise ConfigError(
            f"key model.backbone: KerasHub cannot load the preset {name!r}: {type(error).__name__}: {one_line(error)}"
        ) from error


def _hub_class(name: str) -> type:
    return getattr(_import_keras_hub().models, name)


def _import_keras_hub() -> ModuleType:
    try:
        import keras_hub
    except ImportError as error:
        raise ConfigError(
            f'key model.backbone.name: {HUB_PREFIX} needs KerasHub; install it with pip install -e ".[hub]"'
        ) from error
    return keras_hub


def _as_yaml(value: Any) -> Any:
    """Tuples as lists, as they come back from a YAML file."""
    if isinstance(value, dict):
        return {str(key): _as_yaml(item) for key, item in value.items()}
    return [_as_yaml(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Any KerasHub backbone with pyramid outputs in the place of the ResNet; KerasHub is optional.

The layer, what `model.backbone.name: keras_hub:...` names, and the weights of KerasHub's presets.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dh_keras.config.load import resolve_pixels
from dh_keras.config.schema import HUB_PREFIX, IMAGENET_PIXELS, BackboneConfig, ModelConfig
from dh_keras.errors import ConfigError, one_line, pip_install
from dh_keras.modeling.constants import SIZE_DIVISOR
from dh_keras.modeling.keras_hooks import own_random_numbers
from dh_keras.modeling.layers.resnet import STAGES

STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}
# Height and width on which the strides are checked; different, so that swapped axes are found.
PROBE = (2 * SIZE_DIVISOR, 3 * SIZE_DIVISOR)
# What a backbone's config holds that is no argument of the network itself.
NOT_ARCHITECTURE = ("name", "trainable", "dtype")
WEIGHTS = "model.weights.h5"  # of a preset
INPUT_SHAPE_NAMES = ("image_shape", "input_shape")


@keras.saving.register_keras_serializable(package="dh_keras")
class HubBackbone(keras.layers.Layer):
    """A backbone of KerasHub, cut after the deepest level that the feature pyramid needs.

    Its own convolutions, norms and drop-out stay as KerasHub makes them; pixels arrive normalised, as for the ResNet.

    Args:
        class_name: such as "EfficientNetBackbone", a class of `keras_hub.models` with pyramid outputs.
        arguments: of its constructor; the data format is channels last.
        frozen_stages: n > 0 freezes everything that C2..C(n + 1) are computed from.
        norm: of its batch norms: "frozen" (fixed statistics, fixed scale and offset), "batch" or "sync". Layer norms
            train in each.

    Raises:
        ValueError: when the class, its arguments or its strides do not fit.
    """

    def __init__(self, *, class_name: str, arguments: dict[str, Any], frozen_stages: int, norm: str, **kwargs: Any):
        super().__init__(**kwargs)
        if norm not in ("frozen", "batch", "sync"):
            raise ValueError(f"`norm` must be frozen, batch or sync, got {norm!r}")
        self.network = cut_network(make_hub_model(class_name, arguments))
        for layer in tf.train.TrackableView(self.network).descendants():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = norm == "sync"
                layer.trainable = norm != "frozen"
        frozen = [self.network.output[stage] for stage in STAGES[:frozen_stages]]
        for layer in keras.Model(self.network.input, frozen).layers if frozen else []:
            layer.trainable = False

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        """Shapes of C2..C5 with their channels; height and width are left open."""
        return {name: (input_shape[0], None, None, output.shape[-1]) for name, output in self.network.output.items()}

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Compute the pyramid's inputs.

        Args:
            images: float [B, H, W, 3], normalised; H and W are multiples of 32.
            training: whether unfrozen batch norms use batch statistics, and drop-out drops.

        Returns:
            "C2".."C5": float [B, H / s, W / s, C] with s = 4, 8, 16, 32.
        """
        return self.network(images, training=training)


def make_hub_model(class_name: str, arguments: dict[str, Any]) -> keras.Model:
    """Build a KerasHub backbone with random weights.

    Raises:
        ValueError: when its constructor refuses the arguments, with the reason.
    """
    backbone_class = getattr(importlib.import_module("keras_hub").models, class_name)
    try:
        return backbone_class(**arguments)
    except Exception as error:  # whatever a constructor of another library raises
        raise ValueError(f"{class_name} refused its arguments: {error}") from error


def cut_network(model: keras.Model) -> keras.Model:
    """The part of a KerasHub backbone that computes C2..C5.

    Raises:
        ValueError: when a level is missing or does not have its stride, or images must have one size.
    """
    levels = {stage: stage.replace("C", "P") for stage in STAGES}
    outputs = model.pyramid_outputs
    if tuple(model.input.shape) != (None, None, None, 3):
        raise ValueError(f"{type(model).__name__} takes images of one size, {tuple(model.input.shape)[1:]}")
    missing = [level for level in levels.values() if level not in outputs]
    if missing:
        raise ValueError(f"{type(model).__name__} gives {', '.join(outputs)}, and {', '.join(missing)} are needed too")
    network = keras.Model(model.input, {stage: outputs[level] for stage, level in levels.items()}, name="network")
    shapes = network.compute_output_shape((1, *PROBE, 3))
    for stage, stride in STRIDES.items():
        expected = tuple(side // stride for side in PROBE)
        if tuple(shapes[stage][1:3]) != expected:
            raise ValueError(
                f"{type(model).__name__}: {levels[stage]} of an image of {PROBE} pixels has the shape "
                f"{tuple(shapes[stage][1:3])}, expected {expected} for a stride of {stride}"
            )
    return network


def is_hub(config: BackboneConfig) -> bool:
    """Whether the backbone is one of KerasHub."""
    return config.name.startswith(HUB_PREFIX)


def resolve_model(config: ModelConfig) -> ModelConfig:
    """Replace the name of a preset by what it stands for, so that a run needs no download to be read.

    Args:
        config: any; stays as it is.

    Returns:
        A config whose `backbone.name` is "resnet" or "keras_hub:CLASS", and whose pixel statistics are numbers: those
        of the preset's weights where it has a preprocessor that says so.

    Raises:
        ConfigError: when KerasHub is missing, knows no such name, cannot get the preset, or the preset says nothing of
            its pixels and the config neither.
    """
    if not is_hub(config.backbone):
        return config
    config = dataclasses.replace(config, backbone=_resolve_backbone(config.backbone))
    if config.pixel_mean is None or config.pixel_std is None:
        preset = config.backbone.weights
        resolve_pixels(config, IMAGENET_PIXELS if preset is None else _preset_pixels(preset, config.channel_order))
    return config


def _preset_pixels(name: str, channel_order: str) -> dict[str, list[float]]:
    """Mean and standard deviation of 0..255 pixels that a preset's preprocessor subtracts and divides by."""
    needed = "give model.pixel_mean and model.pixel_std, of pixels 0 to 255, as its weights were trained"
    try:
        converter = _import_keras_hub().layers.ImageConverter.from_preset(name)
    except Exception as error:  # no such file in the preset, or no class for it
        raise ConfigError(
            f"key model.pixel_mean: the preset {name!r} does not say which pixels its weights expect "
            f"({type(error).__name__}); {needed}"
        ) from error
    if channel_order != "rgb":
        raise ConfigError(
            f"key model.channel_order: the preset {name!r} is for RGB pixels, got {channel_order}; {needed}"
        )
    scale = np.broadcast_to(1.0 if converter.scale is None else converter.scale, 3).astype(np.float64)
    offset = np.broadcast_to(0.0 if converter.offset is None else converter.offset, 3).astype(np.float64)
    return {"pixel_mean": np.round(-offset / scale, 4).tolist(), "pixel_std": np.round(1 / scale, 4).tolist()}


def _resolve_backbone(config: BackboneConfig) -> BackboneConfig:
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


def has_keras_hub() -> bool:
    """Whether KerasHub is installed."""
    return importlib.util.find_spec("keras_hub") is not None


def is_preset_here(name: str) -> bool:
    """Whether a preset of KerasHub can be used without a download: it is a folder, or in the cache of its downloads."""
    if not has_keras_hub():
        return False
    if Path(name).is_dir():
        return True
    from kagglehub import cache, handle

    kinds = [_hub_class(kind) for kind in pyramid_backbones(_import_keras_hub())]
    known = next((kind.presets[name] for kind in kinds if name in kind.presets), {})
    scheme, _, address = known.get("kaggle_handle", "").partition("://")
    return scheme == "kaggle" and Path(cache.get_cached_path(handle.parse_model_handle(address), WEIGHTS)).is_file()


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
        with own_random_numbers(0):  # a preset without weights has random ones, which nobody sees
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
            f"key model.backbone.name: {HUB_PREFIX} needs KerasHub; install it with {pip_install('hub')}"
        ) from error
    return keras_hub


def _as_yaml(value: Any) -> Any:
    """Tuples as lists, as they come back from a YAML file."""
    if isinstance(value, dict):
        return {str(key): _as_yaml(item) for key, item in value.items()}
    return [_as_yaml(item) for item in value] if isinstance(value, (list, tuple)) else value

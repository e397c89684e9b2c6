"""Any KerasHub backbone with pyramid outputs, in the place of the ResNet: images to C2..C5."""

import importlib
from typing import Any

import keras
import tensorflow as tf

from dh_keras.constants import SIZE_DIVISOR
from dh_keras.layers.resnet import STAGES

STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}
# Height and width on which the strides are checked; different, so that swapped axes are found.
PROBE = (2 * SIZE_DIVISOR, 3 * SIZE_DIVISOR)


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

    def __init__(
        self,
        *,
        class_name: str,
        arguments: dict[str, Any],
        frozen_stages: int = 0,
        norm: str = "batch",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if norm not in ("frozen", "batch", "sync"):
            raise ValueError(f"`norm` must be frozen, batch or sync, got {norm!r}")
        self.class_name = class_name
        self.arguments = dict(arguments)
        self.frozen_stages = frozen_stages
        self.norm_kind = norm
        self.network = cut_network(make_hub_model(class_name, self.arguments))
        for layer in self.network._flatten_layers(include_self=False):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = norm == "sync"
                layer.trainable = norm != "frozen"
        for layer in self._frozen_layers():
            layer.trainable = False

    def _frozen_layers(self) -> list[keras.layers.Layer]:
        frozen = [self.network.output[stage] for stage in STAGES[: self.frozen_stages]]
        return keras.Model(self.network.input, frozen).layers if frozen else []

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Compute the pyramid's inputs.

        Args:
            images: float [B, H, W, 3], normalised; H and W are multiples of 32.
            training: whether unfrozen batch norms use batch statistics, and drop-out drops.

        Returns:
            "C2".."C5": float [B, H / s, W / s, C] with s = 4, 8, 16, 32.
        """
        return self.network(images, training=training)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "class_name": self.class_name,
            "arguments": self.arguments,
            "frozen_stages": self.frozen_stages,
            "norm": self.norm_kind,
        }


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

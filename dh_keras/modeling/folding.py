"""A detector made for inference: batch norms folded into convolutions, in float32 or bfloat16."""

import keras
import numpy as np

from dh_keras.modeling.constants import BATCH_NORM_EPSILON, PRECISIONS
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.hub_backbone import HubBackbone
from dh_keras.modeling.keras_hooks import own_random_numbers, weights_to_come
from dh_keras.modeling.layers.normalization import FOLDED
from dh_keras.modeling.precision import layer_precision
from dh_keras.modeling.variables import variables_by_path


def inference_copy(detector: DoubleHeadRCNN, *, precision: str = "float32") -> DoubleHeadRCNN:
    """A detector for inference, which shares with the given one the layers that are fit for it already.

    A batch norm with fixed statistics is linear, so it and the convolution before it are one convolution with a bias.
    Group norms stay, and so do all norms of a KerasHub backbone. Boxes, scores and suppression are float32 in either
    precision.

    Args:
        detector: a built detector; it is not changed.
        precision: "float32" or "bfloat16", of the convolutions, the fully connected layers and their weights.

    Returns:
        A detector without batch norms that gives the same detections up to rounding; not to be trained.

    Raises:
        ValueError: for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be float32 or bfloat16, got {precision!r}")
    names = ("normalization", "backbone", "fpn", "rpn_head")
    with layer_precision(precision), own_random_numbers(detector.seed), weights_to_come():
        copy = detector.with_layers(
            **{name: _fit_for_inference(getattr(detector, name), precision) for name in names},
            roi_align={kind: _fit_for_inference(layer, precision) for kind, layer in detector.roi_align.items()},
            heads={name: _fit_for_inference(layer, precision) for name, layer in detector.heads.items()},
        )
    _copy_weights(detector, copy)
    return copy


def _fit_for_inference(layer: keras.layers.Layer, precision: str) -> keras.layers.Layer:
    """The layer where it has the precision and no batch norm to fold; else an empty one of the same settings."""
    config = {name: value for name, value in layer.get_config().items() if name != "dtype"}
    if config.get("norm", "group") != "group" and not isinstance(layer, HubBackbone):
        config["norm"] = FOLDED
    elif layer.dtype_policy.name == precision:
        return layer
    return type(layer).from_config(config)


def _copy_weights(source: DoubleHeadRCNN, target: DoubleHeadRCNN) -> None:
    """Copy what is not shared; a convolution whose batch norm the target does not have takes the norm's share."""
    shared = set(map(id, source.weights)) & set(map(id, target.weights))
    ours = {path: one.numpy() for path, one in variables_by_path(source).items() if id(one) not in shared}
    theirs = {path: one for path, one in variables_by_path(target).items() if id(one) not in shared}
    given, wanted = source.backbone.weights, target.backbone.weights
    if target.backbone is not source.backbone and [one.shape for one in given] == [one.shape for one in wanted]:
        target.backbone.set_weights([one.numpy() for one in given])  # there may be no path to go by
    for path, variable in theirs.items():
        layer, _, kind = path.rpartition("/")
        norm = f"{layer.rpartition('/')[0]}/norm/"
        is_before_norm = layer.endswith(("/conv", "/output_conv")) and f"{norm}gamma" in ours
        if not is_before_norm or f"{norm}gamma" in theirs:
            variable.assign(ours[path])
            continue
        scale = ours[f"{norm}gamma"] / np.sqrt(ours[f"{norm}moving_variance"].astype(np.float64) + BATCH_NORM_EPSILON)
        if kind == "kernel":
            variable.assign(ours[path] * scale)
        else:
            mean = ours[f"{norm}moving_mean"] - ours.get(path, 0.0)
            variable.assign(ours[f"{norm}beta"] - mean * scale)

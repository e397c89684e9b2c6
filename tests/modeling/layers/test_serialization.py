"""Every layer keeps every constructor argument: configs against the values passed in, outputs with copied weights."""

import importlib
import inspect
import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import random_input, randomise

import dh_keras.modeling.layers
from dh_keras.modeling.hub_backbone import HubBackbone
from dh_keras.modeling.layers import (
    FPN,
    BoxPredictors,
    ConvHead,
    ConvNorm,
    FCHead,
    FusedBatchNormalization,
    NonLocalBlock,
    PixelNormalization,
    ResidualBlock,
    ResNet,
    RoIAlign,
    RPNHead,
    SyncBatchNormalization,
    UpBlock,
)

MAP = random_input(2, 9, 7, 8)
ROI_FEATURES = random_input(3, 5, 3, 6)
STAGES = {f"C{n}": random_input(1, 2 ** (5 - n) * 3, 2 ** (5 - n) * 2, n, seed=n) for n in (2, 3, 4, 5)}
PYRAMID = {f"P{n}": random_input(2, 160 // 2**n, 96 // 2**n, 4, seed=n) for n in (2, 3, 4, 5)}
ROIS = np.float32([[3, 5, 90, 70], [10, 2, 25, 40]])
NORMAL = {"class_name": "RandomNormal", "config": {"stddev": 0.3, "seed": 5}}

# Layer, constructor arguments (none of them a default), call arguments.
CASES = [
    (
        ConvNorm,
        {
            "filters": 5,
            "kernel_size": 3,
            "stride": 2,
            "norm": "group",
            "relu": True,
            "zero_gamma": True,
            "kernel_initializer": NORMAL,
        },
        [MAP],
    ),
    (
        ConvNorm,
        {
            "filters": 6,
            "kernel_size": 7,
            "stride": 3,
            "norm": "frozen",
            "relu": False,
            "zero_gamma": True,
            "kernel_initializer": NORMAL,
        },
        [MAP],
    ),
    (
        ResidualBlock,
        {
            "filters": 3,
            "bottleneck": False,
            "stride": 2,
            "stride_in_1x1": True,
            "projection": True,
            "norm": "group",
            "identity_start": True,
            "kernel_initializer": NORMAL,
        },
        [MAP],
    ),
    (
        ResidualBlock,
        {
            "filters": 3,
            "bottleneck": True,
            "stride": 2,
            "stride_in_1x1": True,
            "projection": True,
            "norm": "batch",
            "identity_start": True,
            "kernel_initializer": NORMAL,
        },
        [MAP],
    ),
    (
        ResNet,
        {"depth": 18, "width": 4, "stride_in_1x1": True, "frozen_stages": 2, "norm": "group"},
        [random_input(1, 65, 97, 3)],
    ),
    (
        HubBackbone,
        {
            "class_name": "DenseNetBackbone",
            "arguments": {"stackwise_num_repeats": [1, 1, 1, 1], "growth_rate": 4},
            "frozen_stages": 2,
            "norm": "frozen",
        },
        [random_input(1, 64, 96, 3)],
    ),
    (FPN, {"channels": 5}, [STAGES]),
    (RPNHead, {"channels": 5, "anchors_per_cell": 2}, [PYRAMID]),
    (
        RoIAlign,
        {"scale": 1.3, "sampling_ratio": 0, "geometry": "legacy", "output_size": (5, 3), "levels": ("P3", "P4")},
        [PYRAMID, ROIS, np.int32([1, 0])],
    ),
    (NonLocalBlock, {"channels": 6, "groups": 3, "mode": "softmax", "norm": "group"}, [MAP]),
    (UpBlock, {"channels": 8, "norm": "group"}, [ROI_FEATURES]),
    (BoxPredictors, {"num_classes": 5, "classes": False, "boxes": True}, [random_input(3, 4)]),
    (BoxPredictors, {"num_classes": 5, "classes": True, "boxes": False}, [random_input(3, 4)]),
    (FCHead, {"channels": 7, "num_classes": 5, "classes": True, "boxes": False}, [ROI_FEATURES]),
    (
        ConvHead,
        {
            "channels": 8,
            "blocks": 2,
            "norm": "group",
            "non_local_channels": 6,
            "non_local_groups": 3,
            "non_local_mode": "softmax",
            "num_classes": 5,
            "classes": False,
            "boxes": True,
        },
        [ROI_FEATURES],
    ),
    (
        PixelNormalization,
        {"channel_order": "bgr", "mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0)},
        [np.arange(36, dtype=np.uint8).reshape(1, 4, 3, 3), np.int32([[3, 2]])],
    ),
    (FusedBatchNormalization, {"momentum": 0.7, "epsilon": 0.02, "trainable": False}, [MAP]),
    (SyncBatchNormalization, {"momentum": 0.7, "epsilon": 0.02, "trainable": False}, [MAP]),
]
EVERY_CASE = pytest.mark.parametrize(
    ("layer_class", "arguments", "inputs"), CASES, ids=[f"{case[0].__name__}{i}" for i, case in enumerate(CASES)]
)


def public_layers():
    for module in pkgutil.iter_modules(dh_keras.modeling.layers.__path__, "dh_keras.modeling.layers."):
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, keras.layers.Layer) and value.__module__ == module.name:
                yield value


def test_every_layer_is_imported_from_one_place():
    layers = {layer_class.__name__: layer_class for layer_class in public_layers()}
    exported = {name: getattr(dh_keras.modeling.layers, name) for name in dh_keras.modeling.layers.__all__}
    assert {name: value for name, value in exported.items() if inspect.isclass(value)} == layers


def own_arguments(layer_class):
    parameters = inspect.signature(layer_class.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_there_is_a_case_for_every_layer_with_every_argument_of_its_constructor():
    tested = {case[0] for case in CASES}
    assert tested == {*public_layers(), HubBackbone}
    for layer_class, arguments, _ in CASES:
        own = own_arguments(layer_class)
        if not issubclass(layer_class, FusedBatchNormalization):
            assert arguments.keys() == own.keys(), layer_class
        # A boolean of a second case may be at its default, so that both values are seen.
        others = {name for name, default in own.items() if not isinstance(default, bool)}
        assert not [name for name in others if name in arguments and arguments[name] == own[name]], layer_class


@EVERY_CASE
def test_config_holds_what_was_passed_in(layer_class, arguments, inputs):
    config = layer_class(**arguments, name="some_name").get_config()
    assert config.pop("name") == "some_name"
    assert {name: config.pop(name) for name in arguments} == arguments
    if not issubclass(layer_class, FusedBatchNormalization):
        assert config.keys() <= {"trainable", "dtype"}


@EVERY_CASE
def test_a_layer_made_from_the_config_has_the_same_weights_and_outputs(layer_class, arguments, inputs):
    layer = layer_class(**arguments, name="some_name")
    outputs = layer(*inputs)  # builds
    randomise(layer)
    before, outputs = outputs, layer(*inputs)
    serialized = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(serialized)
    assert type(copy) is layer_class
    copy(*inputs)
    assert [(v.path, v.shape) for v in copy.variables] == [(v.path, v.shape) for v in layer.variables]
    assert [v.path for v in copy.trainable_variables] == [v.path for v in layer.trainable_variables]
    copy.set_weights(layer.get_weights())
    assert not _any_difference(outputs, copy(*inputs))
    if layer.variables:
        assert _any_difference(before, outputs)


def _any_difference(left, right):
    pairs = zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def test_weights_of_nested_layers_survive_a_file(tmp_path):
    arguments = next(arguments for layer_class, arguments, _ in CASES if layer_class is ConvHead)
    heads = [ConvHead(**arguments, name="conv_head") for _ in range(2)]
    models = []
    for seed, head in enumerate(heads):
        inputs = keras.Input(ROI_FEATURES.shape[1:])
        models.append(keras.Model(inputs, head(inputs)))
        randomise(head, seed)
    assert _any_difference(models[0](ROI_FEATURES), models[1](ROI_FEATURES))
    models[0].save_weights(tmp_path / "head.weights.h5")
    models[1].load_weights(tmp_path / "head.weights.h5")
    assert not _any_difference(models[0](ROI_FEATURES), models[1](ROI_FEATURES))

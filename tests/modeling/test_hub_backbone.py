"""Backbones of KerasHub: what they compute, which are refused, and a run with one from training to the SavedModel."""

import dataclasses
import functools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from dh_keras.config.load import load_config
from dh_keras.config.schema import IMAGENET_PIXELS, BackboneConfig, ModelConfig
from dh_keras.errors import ConfigError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.folding import inference_copy
from dh_keras.modeling.hub_backbone import (
    HubBackbone,
    cut_network,
    load_hub_weights,
    make_hub_backbone,
    make_hub_model,
    pyramid_backbones,
    resolve_model,
)
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.variables import variables_by_path
from dh_keras.run.weights import initialize_weights, save_weights

keras_hub = pytest.importorskip("keras_hub")

EFFICIENTNET = {
    "stackwise_width_coefficients": [1.0] * 5,
    "stackwise_depth_coefficients": [1.0] * 5,
    "stackwise_kernel_sizes": [3] * 5,
    "stackwise_num_repeats": [1] * 5,
    "stackwise_input_filters": [8, 8, 8, 8, 16],
    "stackwise_output_filters": [8, 8, 8, 16, 16],
    "stackwise_expansion_ratios": [1, 2, 2, 2, 2],
    "stackwise_squeeze_and_excite_ratios": [0, 0, 0, 0.25, 0.25],
    "stackwise_strides": [1, 2, 2, 2, 2],
    "stackwise_block_types": ["fused", "fused", "fused", "unfused", "unfused"],
    "dropout": 0.1,
}
DENSENET = {"stackwise_num_repeats": [1, 1, 1, 1], "growth_rate": 4}
MIT = {
    "layerwise_depths": [1, 1, 1, 1],
    "num_layers": 4,
    "layerwise_num_heads": [1, 1, 1, 1],
    "layerwise_sr_ratios": [8, 4, 2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3, 3, 3],
    "layerwise_strides": [4, 2, 2, 2],
    "hidden_dims": [8, 8, 8, 8],
    "image_shape": [64, 96, 3],
}
OVERRIDES = (
    "model.backbone.name=keras_hub:EfficientNetBackbone",
    f"model.backbone.hub_arguments={yaml.safe_dump(EFFICIENTNET, default_flow_style=True, width=10**6).strip()}",
)
IMAGES = np.random.default_rng(0).normal(0, 1, (2, 64, 128, 3)).astype(np.float32)


def test_the_layer_gives_the_pyramid_of_kerashub():
    layer = HubBackbone(class_name="EfficientNetBackbone", arguments=EFFICIENTNET, frozen_stages=0, norm="batch")
    whole = make_hub_model("EfficientNetBackbone", EFFICIENTNET)
    whole.set_weights([np.random.default_rng(i).uniform(0.5, 1, w.shape) for i, w in enumerate(whole.get_weights())])
    layer.network.set_weights(whole.get_weights())
    outputs = layer(IMAGES)
    expected = keras.Model(whole.input, whole.pyramid_outputs)(IMAGES, training=False)
    assert {stage: x.shape[1:3] for stage, x in outputs.items()} == {
        "C2": (16, 32),
        "C3": (8, 16),
        "C4": (4, 8),
        "C5": (2, 4),
    }
    for stage, features in outputs.items():
        np.testing.assert_array_equal(features, expected[stage.replace("C", "P")])


def test_frozen_norms_and_stages_do_not_train():
    arguments = {"class_name": "DenseNetBackbone", "arguments": DENSENET, "frozen_stages": 0, "norm": "batch"}
    free, norms, stages = (HubBackbone(**arguments | more) for more in ({}, {"norm": "frozen"}, {"frozen_stages": 2}))
    for layer in (free, norms, stages):
        layer.build((None, None, None, 3))
    gammas = {v.path for v in free.trainable_weights if v.path.endswith("gamma")}
    assert gammas
    assert {v.path for v in norms.trainable_weights} == {
        v.path for v in free.trainable_weights if not v.path.endswith(("gamma", "beta"))
    }
    before = [w for w in norms.get_weights()]
    norms(IMAGES, training=True)
    for old, new in zip(before, norms.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    trained = {v.path.split("/")[0] for v in stages.trainable_weights}
    assert {name.split("_")[0] for name in trained} == {"transition2", "stack3", "transition3", "stack4"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"name": "keras_hub:efficientnet2_rw_s"},
            r"no backbone 'efficientnet2_rw_s' with .* expected keras_hub:NAME with one of .*DenseNetBackbone, "
            r"EfficientNetBackbone, .*such as efficientnet2_rw_",
        ),
        ({"name": "keras_hub:BertBackbone"}, r"no backbone 'BertBackbone' with pyramid outputs"),
        ({"hub_arguments": {"growth": 3}}, r"hub_arguments: DenseNetBackbone refused .* are stackwise_num_repeats, "),
        ({"hub_arguments": {**DENSENET, "stackwise_num_repeats": [1, 1]}}, r"gives P2, P3, and P4, P5 are needed too"),
        ({"name": "keras_hub:MiTBackbone", "hub_arguments": MIT}, r"takes images of one size, \(64, 96, 3\)"),
        ({"norm": "group"}, r"model\.backbone\.norm: expected frozen, batch or sync"),
        ({"hub_arguments": {**DENSENET, "data_format": "channels_first"}}, r"data_format: expected channels_last"),
        ({"name": "keras_hub:/no/such/preset"}, r"cannot load the preset '/no/such/preset'"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(changes, expected):
    config = BackboneConfig(name="keras_hub:DenseNetBackbone", hub_arguments=DENSENET, norm="batch")
    model = ModelConfig(backbone=dataclasses.replace(config, **changes), **IMAGENET_PIXELS)
    with pytest.raises(ConfigError, match=expected) as caught:
        make_hub_backbone(resolve_model(model).backbone)
    assert "\n" not in str(caught.value)


def test_strides_are_computed():
    efficientnet = {**EFFICIENTNET, "stackwise_strides": [1, 2, 2, 4, 2]}
    config = BackboneConfig(name="keras_hub:EfficientNetBackbone", hub_arguments=efficientnet, norm="batch")
    with pytest.raises(ConfigError, match=r"P4 of an image of \(64, 96\) pixels has the shape .* for a stride of 16"):
        make_hub_backbone(config)


def test_the_list_of_what_fits_is_kerashubs_own():
    names = pyramid_backbones(keras_hub)
    assert {"EfficientNetBackbone", "ResNetBackbone", "CSPNetBackbone"} <= set(names)
    assert not {"BertBackbone", "FeaturePyramidBackbone", "DINOV2Backbone"} & set(names)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.backbone.name=vgg", r"key model\.backbone\.name: expected resnet, or keras_hub: and a preset or class"),
        ("model.backbone.name='keras_hub:'", r"key model\.backbone\.name"),
        ("model.backbone.hub_arguments={a: 1}", r"hub_arguments: expected null, as model\.backbone\.name is resnet"),
    ],
)
def test_names_are_checked_with_the_config(override, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(overrides=[override])


def test_without_kerashub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ConfigError, match=r'install it with pip install "keras-hub<'):
        resolve_model(ModelConfig(backbone=BackboneConfig(name="keras_hub:DenseNetBackbone")))


def test_a_preset_becomes_class_arguments_and_weights(tmp_path):
    model = make_hub_model("DenseNetBackbone", DENSENET)
    model.set_weights([np.random.default_rng(i).normal(0, 1, w.shape) for i, w in enumerate(model.get_weights())])
    model.save_to_preset(str(tmp_path / "preset"))
    name = f"keras_hub:{tmp_path / 'preset'}"
    pixels = ("model.pixel_mean=[1,2,3]", "model.pixel_std=[4,5,6]")
    config = load_config(overrides=[f"model.backbone.name='{name}'", "model.backbone.norm=batch", *pixels]).model
    resolved = resolve_model(config)
    assert (resolved.pixel_mean, resolved.pixel_std) == ([1, 2, 3], [4, 5, 6])
    assert config.backbone.name == name
    backbone = resolved.backbone
    assert (backbone.name, backbone.weights) == ("keras_hub:DenseNetBackbone", str(tmp_path / "preset"))
    assert backbone.hub_arguments["growth_rate"] == 4
    assert backbone.hub_arguments["image_shape"] == [None, None, 3]
    assert yaml.safe_load(yaml.safe_dump(backbone.hub_arguments)) == backbone.hub_arguments
    assert resolve_model(resolved) == resolved
    layer = make_hub_backbone(backbone)
    load_hub_weights(layer, backbone)
    for given, loaded in zip(cut_network(model).get_weights(), layer.network.get_weights(), strict=True):
        np.testing.assert_array_equal(given, loaded)
    other = dataclasses.replace(backbone, hub_arguments={**backbone.hub_arguments, "growth_rate": 8})
    with pytest.raises(ConfigError, match=r"model\.backbone\.weights: .*preset is of another network than keras_hub:"):
        load_hub_weights(make_hub_backbone(other), other)


def preset_config(tmp_path, *overrides, **converter):
    """The model of a config with a preset, which has a preprocessor when its numbers are given."""
    import keras_hub

    folder = tmp_path / "preset"
    make_hub_model("DenseNetBackbone", DENSENET).save_to_preset(str(folder))
    if converter:
        keras_hub.layers.DenseNetImageConverter(**converter).save_to_preset(str(folder))
    names = [f"model.backbone.name='keras_hub:{folder}'", "model.backbone.norm=batch"]
    return load_config(overrides=[*names, *overrides]).model


@pytest.mark.parametrize(
    ("converter", "mean", "std"),
    [
        ({"scale": 1 / 127.5, "offset": -1.0}, [127.5] * 3, [127.5] * 3),
        ({"scale": [0.017, 0.018, 0.019], "offset": [-2.1, -2.0, -1.8]}, [123.5294, 111.1111, 94.7368], None),
        ({"height": 64, "width": 64}, [0.0] * 3, [1.0] * 3),
    ],
)
def test_pixel_statistics_are_those_of_the_presets_preprocessor(tmp_path, converter, mean, std):
    config = preset_config(tmp_path, **converter)
    assert (config.pixel_mean, config.pixel_std) == (None, None)
    resolved = resolve_model(config)
    np.testing.assert_allclose(resolved.pixel_mean, mean, atol=1e-4)
    np.testing.assert_allclose(resolved.pixel_std, std or [58.8235, 55.5556, 52.6316], atol=1e-4)
    pixels = np.array([10.0, 100.0, 200.0])
    seen = pixels * converter.get("scale", 1.0) + converter.get("offset", 0.0)
    np.testing.assert_allclose((pixels - resolved.pixel_mean) / resolved.pixel_std, seen, atol=1e-4)


def test_pixel_statistics_are_asked_for_where_a_preset_has_none_and_are_imagenets_for_random_weights(tmp_path):
    with pytest.raises(
        ConfigError, match=r"preset' does not say which pixels .*; give model\.pixel_mean and model\.pixel_std"
    ):
        resolve_model(preset_config(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.channel_order: .*'.*preset' is for RGB pixels, got bgr"):
        resolve_model(preset_config(tmp_path / "bgr", "model.channel_order=bgr", scale=1 / 127.5, offset=-1.0))
    random = load_config(overrides=OVERRIDES).model
    assert {name: getattr(resolve_model(random), name) for name in IMAGENET_PIXELS} == IMAGENET_PIXELS


@pytest.fixture(scope="module")
def detector(tiny_overrides):
    """In mixed precision, with the first stage frozen; backbone weights as a trained network might have them."""
    more = ("model.backbone.frozen_stages=1", "model.backbone.norm=batch")
    config = load_config(overrides=[*tiny_overrides, *OVERRIDES, *more]).model
    detector = assemble_detector(config, num_classes=3, precision="mixed_bfloat16")
    for index, variable in enumerate(detector.backbone.weights):
        variable.assign(np.random.default_rng(index).uniform(0.5, 1.5, variable.shape) / np.sqrt(variable.shape[-1]))
    return detector


def test_a_step_in_mixed_precision_trains_what_is_not_frozen(detector, batch):
    detector.compile(optimizer=RecipeSGD(0.1), jit_compile=False)
    before = {v.path: v.numpy() for v in detector.backbone.weights}
    detector.train_step(batch)
    changed = {v.path for v in detector.backbone.weights if np.any(v.numpy() != before[v.path])}
    trainable = {v.path for v in detector.backbone.trainable_weights}
    # A shift before another norm has no effect, so a few have no gradient to speak of.
    assert len(trainable & changed) > max(20, 0.9 * len(trainable))
    assert not [path for path in changed - trainable if "moving" not in path]
    assert not [path for path in changed if path.startswith(("stem", "block1", "block2"))]
    assert {v.dtype for v in detector.backbone.weights} == {"float32"}
    assert detector.extract_features(batch, training=False)["P2"].dtype == "bfloat16"


def test_weights_survive_a_file_and_start_another_run(detector, tiny_overrides, tmp_path):
    save_weights(detector, tmp_path / "best.weights.h5")
    config = load_config(overrides=[*tiny_overrides, *OVERRIDES]).model
    other = assemble_detector(config, num_classes=4, seed=1)
    skipped = initialize_weights(other, tmp_path / "best.weights.h5", [])
    assert skipped
    assert all("predictor" in line for line in skipped)
    for ours, theirs in zip(detector.backbone.get_weights(), other.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_saved_model_computes_the_same(tmp_path):
    layer = HubBackbone(class_name="EfficientNetBackbone", arguments=EFFICIENTNET, frozen_stages=0, norm="batch")
    module = tf.Module()
    module.layer = layer
    module.run = tf.function(
        functools.partial(layer, training=False), input_signature=[tf.TensorSpec([None, None, None, 3])]
    )
    expected = layer(IMAGES)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for stage, features in loaded.run(IMAGES).items():
        np.testing.assert_allclose(features, expected[stage], atol=1e-5)


def test_the_copy_for_inference_keeps_the_backbones_norms(detector, batch):
    copy = inference_copy(detector)
    assert len(copy.backbone.weights) == len(detector.backbone.weights)
    assert not [path for path in variables_by_path(copy) if "moving" in path]
    images = {name: batch[name] for name in ("images", "image_sizes")}
    exact, mixed = (d.extract_features(images, training=False) for d in (copy, detector))
    for level, features in exact.items():
        assert features.dtype == "float32"
        difference = np.abs(features - tf.cast(mixed[level], tf.float32))
        assert 0 < difference.max() < 0.05 * np.abs(features).max()

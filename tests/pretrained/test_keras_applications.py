"""ImageNet and torchvision weights for the backbone."""

import importlib.util

import keras
import numpy as np
import published
import pytest
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.errors import ConfigError, DataError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.layers.resnet import ResNet
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import keras_applications
from dh_keras.pretrained.build import build_detector, load_backbone
from dh_keras.pretrained.resnet_names import resnet_rules

CAFFE = ["model.channel_order=bgr", "model.pixel_mean=[103.939,116.779,123.68]", "model.pixel_std=[1,1,1]"]
STAGE_OUTPUTS = {
    50: ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"),
    101: ("conv2_block3_out", "conv3_block4_out", "conv4_block23_out", "conv5_block3_out"),
}


def imagenet_config(depth, *overrides):
    backbone = [f"model.backbone.depth={depth}", "model.backbone.width=64", "model.backbone.stride_in_1x1=true"]
    return load_config(overrides=["model.backbone.weights=imagenet", *backbone, *CAFFE, *overrides]).model


def make_backbone(config):
    settings = config.backbone
    backbone = ResNet(
        depth=settings.depth,
        width=settings.width,
        stride_in_1x1=settings.stride_in_1x1,
        frozen_stages=settings.frozen_stages,
        norm=settings.norm,
        name="backbone",
    )
    backbone.build((None, None, None, 3))
    return backbone


def randomise(network):
    """Fresh networks have no biases and trivial norms, which would hide a wrong fold."""
    random = np.random.default_rng(1)
    for layer in network.layers:
        for variable in layer.weights:
            if variable.name == "moving_variance":
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
            elif variable.name in ("gamma", "beta", "bias", "moving_mean"):
                centre = 0.5 if variable.name == "gamma" else 0.0
                variable.assign(centre + random.uniform(-0.3, 0.3, variable.shape))
    return network


@pytest.mark.parametrize("depth", [50, 101])
def test_c2_to_c5_equal_those_of_keras_applications(monkeypatch, depth):
    network = randomise(keras_applications._application(depth, None))
    monkeypatch.setattr(keras_applications, "_application", lambda *_: network)
    config = imagenet_config(depth)
    backbone = make_backbone(config)
    load_backbone(backbone, config)
    images = tf.constant(np.random.default_rng(2).uniform(-100, 100, (1, 64, 96, 3)), tf.float32)
    ours = backbone(images, training=False)
    theirs = keras.Model(network.input, [network.get_layer(name).output for name in STAGE_OUTPUTS[depth]])(images)
    for (name, features), expected in zip(ours.items(), theirs, strict=True):
        assert features.shape == expected.shape
        assert np.abs(features - expected).max() < 1e-4 * max(1.0, np.abs(expected).max()), name
    assert not np.allclose(ours["C5"], 0.0)


def test_a_network_that_cannot_be_downloaded_says_what_to_fetch_and_where_to_put_it(monkeypatch):
    def fail(*_):
        raise Exception("URL fetch failure on https://a.b/c.h5: None -- Name or service not known")

    monkeypatch.setattr(keras_applications, "_application", fail)
    monkeypatch.setenv("KERAS_HOME", "/models/keras")
    with pytest.raises(DataError) as error:
        keras_applications.download_imagenet_tensors(101)
    message, name = str(error.value), "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert "(Name or service not known)" in message
    assert f"fetch {keras_applications.ADDRESS}{name}" in message
    assert f"put it at /models/keras/models/{name}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("model.channel_order=rgb", "model.channel_order=bgr"),
        ("model.pixel_std=[58,57,57]", "model.pixel_std=[1,1,1]"),
        ("model.pixel_mean=[0,0,0]", "model.pixel_mean=[103.939,116.779,123.68]"),
        ("model.backbone.stride_in_1x1=false", "model.backbone.stride_in_1x1=true"),
        ("model.backbone.width=32", "model.backbone.width=64"),
        ("model.backbone.depth=18", "model.backbone.depth=50"),
        ("model.backbone.norm=group", "model.backbone.norm"),
    ],
)
def test_settings_that_do_not_go_with_imagenet_weights_are_refused(override, needed):
    with pytest.raises(ConfigError) as error:
        load_backbone(None, imagenet_config(50, override))
    assert needed in str(error.value)


def test_the_authors_own_pixel_means_go_with_imagenet_weights():
    keras_applications.require_imagenet_settings(imagenet_config(50, "model.pixel_mean=[102.9801,115.9465,122.7717]"))


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_the_name_table_covers_every_variable_of_every_depth(depth):
    backbone = ResNet(depth=depth, width=2, stride_in_1x1=False, frozen_stages=0, norm="batch", name="backbone")
    backbone.build((None, None, None, 3))
    targets = [rule.target for rule in resnet_rules(depth, prefix="", target="")]
    assert sorted(targets) == sorted(variables_by_path(backbone))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is needed to read checkpoints")
def test_a_torchvision_file_initialises_the_backbone_and_nothing_else(tmp_path):
    import torch

    shapes = published.resnet_shapes("", "", depth=50, width=4, counter=True)
    tensors = published.make_tensors({**shapes, "fc.weight": (10, 128), "fc.bias": (10,)})
    path = tmp_path / "resnet50.pth"
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, path)
    widths = [
        "model.backbone.width=4",
        "model.fpn.channels=8",
        "model.fc_head.channels=8",
        "model.conv_head.channels=8",
    ]
    config = load_config(overrides=[f"model.backbone.weights={path}", "model.backbone.depth=50", *widths]).model
    random = variables_by_path(assemble_detector(config, num_classes=2))
    loaded = variables_by_path(build_detector(config, num_classes=2, seed=0))
    kernel = loaded["backbone/c4_block5/conv2/conv/kernel"].numpy()
    np.testing.assert_array_equal(kernel, tensors["layer3.5.conv2.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        loaded["backbone/c2_block0/shortcut/norm/beta"], tensors["layer1.0.downsample.1.bias"]
    )
    for name, variable in loaded.items():
        if not name.startswith("backbone/"):
            np.testing.assert_array_equal(variable, random[name])
    config.backbone.depth = 101
    with pytest.raises(DataError, match=r"is a ResNet-50, but model\.backbone\.depth is 101"):
        load_backbone(make_backbone(config), config)

"""A new detector has all its weights before it has seen an image."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.layers.resnet import ResNet
from dh_keras.modeling.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_weights_are_there_before_the_first_image(make_tiny_detector, batch, variant, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(keras.layers.Layer, "__call__", lambda *arguments, **options: pytest.fail("computed"))
        detector = make_tiny_detector(f"model.variant={variant}", "model.conv_head.non_local.channels=8")
    before = [(variable.path, variable.shape) for variable in detector.variables]
    assert all(path.startswith("double_head_rcnn/") for path, _ in before if not path.startswith(("sgd", "recipe")))
    assert len({path for path, _ in before}) == len(before) > 60
    detector({name: batch[name] for name in ("images", "image_sizes")})
    assert [(variable.path, variable.shape) for variable in detector.variables] == before


@pytest.mark.parametrize("depth", [18, 50])
def test_the_backbone_tells_the_channels_that_it_gives(depth):
    backbone = ResNet(depth=depth, width=8, stride_in_1x1=False, frozen_stages=0, norm="group")
    outputs = backbone(tf.constant(np.zeros((2, 64, 96, 3), np.float32)))
    shapes = backbone.compute_output_shape((2, 64, 96, 3))
    assert {name: (2, None, None, output.shape[-1]) for name, output in outputs.items()} == shapes

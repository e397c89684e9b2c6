"""Logits and deltas are computed in float32 in every precision of the other layers."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.layers.conv_head import ConvHead
from dh_keras.modeling.layers.fc_head import FCHead
from dh_keras.modeling.layers.normalization import FOLDED
from dh_keras.modeling.layers.rpn_head import RPNHead
from dh_keras.modeling.precision import layer_precision

HALVES = pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16", "bfloat16"])


def expected(vectors, layer):
    """A linear layer in float64."""
    kernel, bias = layer.kernel.numpy().astype(np.float64), layer.bias.numpy().astype(np.float64)
    return vectors.astype(np.float64) @ kernel.reshape(kernel.shape[-2:]) + bias


def assert_full_precision(outputs, vectors, layer):
    """Equal far below the 1/256 that half precision would round to."""
    values = expected(vectors, layer)
    assert layer.kernel.dtype == layer.compute_dtype == "float32"
    assert outputs.dtype == tf.float32
    np.testing.assert_allclose(outputs.numpy().reshape(values.shape), values, rtol=0, atol=1e-5 * np.abs(values).max())


def spread_out(layer):
    """Weights large enough that rounding would show."""
    layer.kernel.assign(np.random.default_rng(3).normal(size=layer.kernel.shape))


@HALVES
def test_the_fc_heads_predictors_are_float32(precision):
    with layer_precision(precision):
        head = FCHead(channels=16, num_classes=3, classes=True, boxes=True)
        head.build((None, 7, 7, 4))
    predictors = head.predictors
    for layer in (predictors.class_predictor, predictors.box_predictor):
        spread_out(layer)
    features = tf.random.stateless_normal([5, 7, 7, 4], [1, 2])
    vectors = head.fc2(head.fc1(tf.reshape(features, [5, -1])))
    assert vectors.dtype == precision.removeprefix("mixed_")
    outputs = head(features)
    vectors = tf.cast(vectors, tf.float32).numpy()
    assert_full_precision(outputs["class_logits"], vectors, predictors.class_predictor)
    assert_full_precision(outputs["box_deltas"], vectors, predictors.box_predictor)


@HALVES
def test_the_conv_heads_average_and_predictors_are_float32(precision):
    with layer_precision(precision):
        head = ConvHead(
            channels=16,
            blocks=1,
            norm=FOLDED,
            non_local_channels=0,
            non_local_groups=4,
            non_local_mode="dot_product",
            num_classes=3,
            classes=True,
            boxes=True,
        )
        head.build((None, 7, 7, 4))
    spread_out(head.predictors.class_predictor)
    features = tf.random.stateless_normal([5, 7, 7, 4], [1, 2])
    before_average = head.feature_map(tf.cast(features, precision.removeprefix("mixed_")))
    assert before_average.dtype == precision.removeprefix("mixed_")
    vectors = tf.cast(before_average, tf.float32).numpy().astype(np.float64).mean(axis=(1, 2))
    assert_full_precision(head(features)["class_logits"], vectors, head.predictors.class_predictor)


@HALVES
def test_the_rpns_predictors_are_float32(precision):
    with layer_precision(precision):
        head = RPNHead(channels=8, anchors_per_cell=3)
        head.build({"P2": (None, None, None, 8)})
    for layer in (head.objectness_predictor, head.delta_predictor):
        spread_out(layer)
    pyramid = {"P2": tf.cast(tf.random.stateless_normal([1, 5, 6, 8], [1, 2]), precision.removeprefix("mixed_"))}
    hidden = head.conv(pyramid["P2"])
    assert hidden.dtype == precision.removeprefix("mixed_")
    hidden = tf.cast(hidden, tf.float32).numpy()
    logits, deltas = head(pyramid)
    assert_full_precision(logits["P2"], hidden, head.objectness_predictor)
    assert_full_precision(deltas["P2"], hidden, head.delta_predictor)
    at_logits, at_deltas = head.predict_at(pyramid, tf.range(90)[None])
    assert (at_logits.dtype, at_deltas.dtype) == (tf.float32, tf.float32)

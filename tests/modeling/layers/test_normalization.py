"""The normalisations against their formulas, and the fused layer against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy_reference import Weights, batch_norm, group_norm, random_input, randomise

from dh_keras.modeling.layers.normalization import FusedBatchNormalization, make_norm


def built(norm, channels):
    norm.build((None, None, None, channels))
    return norm, randomise(norm)


@pytest.mark.parametrize("kind", ["batch", "sync", "frozen"])
def test_inference_uses_the_moving_statistics(kind):
    norm, w = built(make_norm(kind, 5), 5)
    x = random_input(3, 7, 4, 5) * 2 + 1
    np.testing.assert_allclose(norm(x, training=False), batch_norm(w, norm, x), atol=1e-5)
    np.testing.assert_allclose(norm(x), batch_norm(w, norm, x), atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_training_uses_the_statistics_of_the_batch(kind):
    norm, w = built(make_norm(kind, 5), 5)
    x = random_input(3, 7, 4, 5) * 2 + 1
    np.testing.assert_allclose(norm(x, training=True), batch_norm(w, norm, x, training=True), atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_training_moves_the_statistics_by_a_tenth_towards_mean_and_unbiased_variance(kind):
    norm, w = built(make_norm(kind, 5), 5)
    x = random_input(3, 7, 4, 5) * 2 + 1
    norm(x, training=True)
    pixels = np.float64(x).reshape(-1, 5)
    expected_mean = 0.9 * w(norm.moving_mean) + 0.1 * pixels.mean(axis=0)
    expected_variance = 0.9 * w(norm.moving_variance) + 0.1 * pixels.var(axis=0, ddof=1)
    np.testing.assert_allclose(norm.moving_mean.numpy(), expected_mean, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.numpy(), expected_variance, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_fused_layer_gives_the_values_and_gradients_of_the_keras_layer(training):
    fused, _ = built(FusedBatchNormalization(momentum=0.8, epsilon=1e-5), 6)
    plain = keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-5)
    plain.build((None, None, None, 6))
    plain.set_weights(fused.get_weights())
    before = Weights(fused)
    x, upstream = tf.constant(random_input(2, 5, 3, 6)), random_input(2, 5, 3, 6, seed=2)
    results = []
    for norm in (fused, plain):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = norm(x, training=training)
            loss = tf.reduce_sum(outputs * upstream)
        results.append([outputs, *tape.gradient(loss, [x, norm.gamma.value, norm.beta.value]), norm.moving_mean])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5)
    # Keras takes the biased variance; that of 30 pixels is 29 / 30 of the unbiased one.
    kept = 0.8 * before(fused.moving_variance)
    if training:
        ours, theirs = fused.moving_variance.numpy() - kept, plain.moving_variance.numpy() - kept
        np.testing.assert_allclose(ours, theirs * 30 / 29, atol=1e-6)
    else:
        np.testing.assert_array_equal(fused.moving_variance.numpy(), plain.moving_variance.numpy())


def test_frozen_norm_has_no_trainable_variables_and_never_changes():
    norm, w = built(make_norm("frozen", 5), 5)
    x = random_input(3, 7, 4, 5)
    np.testing.assert_allclose(norm(x, training=True), batch_norm(w, norm, x), atol=1e-5)
    assert norm.trainable_variables == []
    for variable in norm.variables:
        np.testing.assert_array_equal(variable.numpy(), np.float32(w(variable)))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (24, 8), (7, 1)])
def test_group_norm_has_32_groups_or_the_largest_divisor_of_both(channels, groups):
    norm, w = built(make_norm("group", channels), channels)
    x = random_input(2, 5, 3, channels) * 2 + 1
    for training in (True, False):
        np.testing.assert_allclose(norm(x, training=training), group_norm(w, norm, x, groups=groups), atol=2e-5)


@pytest.mark.parametrize(("kind", "scale"), [("batch", 0), ("sync", 0), ("group", 0), ("frozen", 1)])
def test_a_scale_of_zero_is_for_norms_that_can_leave_it(kind, scale):
    for zero_gamma, expected in ((True, scale), (False, 1)):
        norm = make_norm(kind, 8, zero_gamma=zero_gamma)
        norm.build((None, None, None, 8))
        np.testing.assert_array_equal(norm.gamma.numpy(), np.full(8, expected))
        np.testing.assert_array_equal(norm.beta.numpy(), np.zeros(8))


def test_an_unknown_kind_is_rejected_by_name():
    with pytest.raises(ValueError, match=r"batch, frozen, sync or group, got 'layer'"):
        make_norm("layer", 8)

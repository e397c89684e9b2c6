"""Losses worked by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling import losses


def test_smooth_l1_is_quadratic_below_beta_and_linear_above():
    errors = tf.constant([0.0, 0.5, -0.5, 1.0, -2.0, 3.5])
    np.testing.assert_allclose(losses.smooth_l1(errors, beta=1.0), [0, 0.125, 0.125, 0.5, 1.5, 3.0])
    np.testing.assert_allclose(losses.smooth_l1(errors, beta=2.0), [0, 0.0625, 0.0625, 0.25, 1.0, 2.5])
    # Beta of the RPN: 0.5 * 0.01 * 9 and 0.5 - 1 / 18.
    rpn = losses.smooth_l1(tf.constant([0.1, 0.5]), beta=1 / 9)
    np.testing.assert_allclose(rpn, [0.045, 0.5 - 1 / 18], rtol=1e-6)


def test_smooth_l1_with_beta_zero_is_the_absolute_error():
    errors = tf.constant([0.0, 0.25, -3.0])
    with tf.GradientTape() as tape:
        tape.watch(errors)
        values = losses.smooth_l1(errors, beta=0.0)
    np.testing.assert_array_equal(values, [0, 0.25, 3])
    np.testing.assert_array_equal(tape.gradient(values, errors), [0, 1, -1])


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_the_slope_of_smooth_l1_never_exceeds_one(beta):
    errors = tf.constant([-5.0, -0.1, 0.05, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(errors)
        total = tf.reduce_sum(losses.smooth_l1(errors, beta=beta))
    expected = np.sign(errors) if beta == 0 else np.clip(errors / beta, -1, 1)
    np.testing.assert_allclose(tape.gradient(total, errors), expected, rtol=1e-6)


def test_objectness_loss_sums_valid_entropies_and_divides_by_the_normalizer():
    logits = tf.constant([[0.0, math.log(3), math.log(3)], [-math.log(3), 50.0, 7.0]])
    is_foreground = tf.constant([[True, True, False], [True, True, False]])
    valid = tf.constant([[True, True, True], [True, True, False]])
    # Probabilities 1/2, 3/4, 3/4 (wrong), 1/4, 1; the last one is padding.
    expected = (math.log(2) + math.log(4 / 3) + math.log(4) + math.log(4) + 0) / 8
    np.testing.assert_allclose(losses.objectness_loss(logits, is_foreground, valid, 8.0), expected, rtol=1e-6)


def test_objectness_loss_of_padding_only_is_zero_with_zero_gradient():
    logits = tf.constant([[3.0, -2.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.objectness_loss(logits, tf.constant([[True, False]]), tf.zeros([1, 2], tf.bool), 1.0)
    assert loss == 0
    np.testing.assert_array_equal(tape.gradient(loss, logits), [[0, 0]])


def test_box_loss_sums_the_coordinates_of_foreground_and_divides_by_all_sampled():
    deltas = tf.constant([[0.5, 0.0, 2.0, 0.0], [9.0, 9.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0]])
    targets = tf.constant([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 4.0]])
    is_foreground = tf.constant([True, False, True])
    # 0.125 + 1.5 of the first RoI and 2.5 of the third, over the three of them.
    np.testing.assert_allclose(losses.box_loss(deltas, targets, is_foreground, 3.0, beta=1.0), 4.125 / 3, rtol=1e-6)
    np.testing.assert_allclose(losses.box_loss(deltas, targets, is_foreground, 3.0, beta=0.0), 5.5 / 3, rtol=1e-6)


def test_box_loss_accepts_a_batch_of_anchors():
    deltas = tf.constant([[[1.0, 0, 0, 0], [5.0, 5, 5, 5]], [[0.0, 0, 2, 0], [0.0, 0, 0, 3]]])
    is_foreground = tf.constant([[True, False], [True, True]])
    loss = losses.box_loss(deltas, tf.zeros_like(deltas), is_foreground, 4.0, beta=1.0)
    np.testing.assert_allclose(loss, (0.5 + 1.5 + 2.5) / 4)


def test_without_foreground_the_box_loss_and_its_gradient_are_zero():
    deltas = tf.constant([[1.0, 2.0, 3.0, 4.0]] * 2)
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        loss = losses.box_loss(deltas, tf.zeros([2, 4]), tf.constant([False, False]), 2.0, beta=1.0)
    assert loss == 0
    np.testing.assert_array_equal(tape.gradient(loss, deltas), np.zeros([2, 4]))


def test_class_loss_is_the_sum_of_cross_entropies_over_the_normalizer():
    logits = tf.math.log(tf.constant([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [2.0, 4.0, 2.0]]))
    loss = losses.class_loss(logits, tf.constant([0, 2, 1]), 3.0)
    np.testing.assert_allclose(loss, (math.log(2) + math.log(1 / 0.8) + math.log(2)) / 3, rtol=1e-6)
    np.testing.assert_allclose(losses.class_loss(logits, tf.constant([0, 2, 1]), 6.0), loss / 2, rtol=1e-6)


def test_the_last_class_is_background_and_costs_as_any_other():
    logits = tf.constant([[0.0, 0.0, 0.0, 20.0]])
    assert losses.class_loss(logits, tf.constant([3]), 1.0) < 1e-6
    np.testing.assert_allclose(losses.class_loss(logits, tf.constant([0]), 1.0), 20, rtol=1e-5)


def test_each_roi_takes_the_deltas_of_its_own_class():
    deltas = tf.reshape(tf.range(24, dtype=tf.float32), [2, 3, 4])
    own = losses.class_specific_deltas(deltas, tf.constant([2, 0]))
    np.testing.assert_array_equal(own, [[8, 9, 10, 11], [12, 13, 14, 15]])


def test_only_the_deltas_of_the_foreground_class_get_a_gradient():
    deltas = tf.ones([3, 2, 4]) * 0.5
    class_targets = tf.constant([1, 2, 0])  # the second is background
    with tf.GradientTape() as tape:
        tape.watch(deltas)
        own = losses.class_specific_deltas(deltas, class_targets)
        loss = losses.box_loss(own, tf.zeros([3, 4]), class_targets < 2, 4.0, beta=1.0)
    expected = np.zeros([3, 2, 4])
    expected[0, 1] = expected[2, 0] = 0.5 / 4
    np.testing.assert_allclose(tape.gradient(loss, deltas), expected)


def test_losses_of_no_rois_are_zero():
    assert losses.class_loss(tf.zeros([0, 5]), tf.zeros([0], tf.int32), 1.0) == 0
    own = losses.class_specific_deltas(tf.zeros([0, 4, 4]), tf.zeros([0], tf.int32))
    assert own.shape == (0, 4)
    assert losses.box_loss(own, tf.zeros([0, 4]), tf.zeros([0], tf.bool), 1.0, beta=1.0) == 0
    nothing = tf.zeros([2, 0])
    assert losses.objectness_loss(nothing, nothing > 0, nothing > 0, 1.0) == 0

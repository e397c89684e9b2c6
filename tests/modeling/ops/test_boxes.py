"""Box arithmetic against numbers worked by hand and the plain NumPy definitions."""

import math

import numpy as np
import numpy_boxes as reference
import pytest
import tensorflow as tf

from dh_keras.modeling.ops import boxes as box_ops

UNIT = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def test_area_is_height_times_width_and_zero_for_inverted_boxes():
    boxes = [[0, 0, 2, 5], [1.5, 2, 4, 3], [3, 3, 3, 9], [4, 0, 1, 5], [4, 5, 1, 0]]
    np.testing.assert_allclose(box_ops.box_area(tf.constant(boxes, tf.float32)), [10, 2.5, 0, 0, 0])


def test_iou_of_boxes_worked_by_hand():
    box = tf.constant([[0.0, 0.0, 4.0, 6.0]])
    others = [
        [0, 0, 4, 6],  # the same
        [0, 0, 2, 3],  # a quarter of it
        [2, 3, 6, 9],  # a corner of 2 x 3 in common: 6 / (24 + 24 - 6)
        [4, 0, 8, 6],  # only an edge in common
        [9, 9, 12, 12],  # apart
        [0, 0, 6, 4],  # transposed: 16 / (24 + 24 - 16)
    ]
    expected = [[1, 0.25, 1 / 7, 0, 0, 0.5]]
    np.testing.assert_allclose(box_ops.pairwise_iou(box, tf.constant(others, tf.float32)), expected, rtol=1e-6)


def test_iou_of_degenerate_and_inverted_boxes_is_zero():
    box = tf.constant([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    others = tf.constant([[1.0, 1.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0], [3.0, 1.0, 1.0, 3.0], [3.0, 3.0, 1.0, 1.0]])
    np.testing.assert_array_equal(box_ops.pairwise_iou(box, others), np.zeros([2, 4]))


def test_iou_of_random_boxes_equals_the_definition_with_batch_dimensions():
    generator = np.random.default_rng(1)
    boxes = np.stack([reference.random_boxes(generator, 11, 40, 90) for _ in range(2)])
    others = np.stack([reference.random_boxes(generator, 5, 40, 90) for _ in range(2)])
    expected = [reference.iou_matrix(b, o) for b, o in zip(boxes, others, strict=True)]
    np.testing.assert_allclose(box_ops.pairwise_iou(boxes, others), expected, atol=1e-6)


@pytest.mark.parametrize(("boxes", "others"), [(0, 3), (3, 0), (0, 0)])
def test_iou_with_nothing_is_empty(boxes, others):
    assert box_ops.pairwise_iou(tf.zeros([2, boxes, 4]), tf.zeros([2, others, 4])).shape == (2, boxes, others)


def test_continuous_clipping_moves_corners_to_the_image_border():
    boxes = [[-3, -2, 50, 90], [10, 20, 30, 70.5], [35, 5, 45, 15], [45, 75, 50, 80], [-9, -9, -1, -1]]
    expected = [[0, 0, 40, 70], [10, 20, 30, 70], [35, 5, 40, 15], [40, 70, 40, 70], [0, 0, 0, 0]]
    clipped = box_ops.clip_boxes(tf.constant(boxes, tf.float32), tf.constant([40, 70]))
    np.testing.assert_array_equal(clipped, expected)


def test_legacy_clipping_keeps_inclusive_corners_within_size_minus_one():
    boxes = [[-3, -2, 50, 90], [10, 20, 30, 70.5], [45, 75, 50, 80], [-9, -9, -1, -1]]
    # Inclusive: [0, 0, 39, 69], [10, 20, 29, 69], [39, 69, 39, 69] and [0, 0, 0, 0].
    expected = [[0, 0, 40, 70], [10, 20, 30, 70], [39, 69, 40, 70], [0, 0, 1, 1]]
    clipped = box_ops.clip_boxes(tf.constant(boxes, tf.float32), tf.constant([40, 70]), geometry="legacy")
    np.testing.assert_array_equal(clipped, expected)
    np.testing.assert_array_equal(clipped, [reference.clip(box, 40, 70, legacy=True) for box in boxes])


def test_every_image_of_a_batch_is_clipped_to_its_own_size():
    boxes = tf.fill([2, 1, 4], 100.0) * tf.constant([-1.0, -1.0, 1.0, 1.0])
    clipped = box_ops.clip_boxes(boxes, tf.constant([[30, 50], [61, 47]]))
    np.testing.assert_array_equal(clipped, [[[0, 0, 30, 50]], [[0, 0, 61, 47]]])


def test_scaling_keeps_the_centre_and_is_not_clipped():
    boxes = tf.constant([[10.0, 20.0, 20.0, 60.0], [0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    expected = [[8.5, 14, 21.5, 66], [-1.5, -1.5, 11.5, 11.5], [5, 5, 5, 5]]
    np.testing.assert_allclose(box_ops.scale_boxes(boxes, 1.3), expected, rtol=1e-6)
    np.testing.assert_array_equal(box_ops.scale_boxes(boxes, 1.0), boxes)


def test_encoding_worked_by_hand():
    anchor = tf.constant([0.0, 0.0, 10.0, 40.0])  # centre (5, 20)
    box = tf.constant([0.0, 10.0, 20.0, 30.0])  # centre (10, 20), twice as high, half as wide
    expected = np.array([0.5, 0.0, math.log(2), -math.log(2)])
    np.testing.assert_allclose(box_ops.encode_boxes(box, anchor, weights=UNIT), expected, rtol=1e-6)
    np.testing.assert_allclose(
        box_ops.encode_boxes(box, anchor, weights=ROI_WEIGHTS), expected * [10, 10, 5, 5], rtol=1e-6
    )
    # A shift along x only, so that rows and columns cannot be swapped.
    shifted = tf.constant([0.0, 4.0, 10.0, 44.0])
    np.testing.assert_allclose(box_ops.encode_boxes(shifted, anchor, weights=UNIT), [0, 0.1, 0, 0], atol=1e-7)


def test_decoding_worked_by_hand():
    anchor = tf.constant([[0.0, 0.0, 10.0, 40.0]])
    deltas = tf.constant([[5.0, 0.0, 5 * math.log(2), -5 * math.log(2)], [0.0, -1.0, 0.0, 0.0], [0.0] * 4])
    expected = [[0, 10, 20, 30], [0, -4, 10, 36], [0, 0, 10, 40]]
    np.testing.assert_allclose(box_ops.decode_boxes(deltas, anchor, weights=ROI_WEIGHTS), expected, atol=1e-5)


@pytest.mark.parametrize("weights", [UNIT, ROI_WEIGHTS])
def test_decoding_inverts_encoding_and_both_equal_the_definition(weights):
    generator = np.random.default_rng(2)
    boxes, anchors = (reference.random_boxes(generator, 50, 300, 500) for _ in range(2))
    deltas = box_ops.encode_boxes(boxes, anchors, weights=weights)
    expected = [reference.encode(box, anchor, weights) for box, anchor in zip(boxes, anchors, strict=True)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-4)
    decoded = box_ops.decode_boxes(deltas, anchors, weights=weights).numpy()
    # The log sizes of the pairs reach 5; only those within the clamp come back.
    within = np.array(expected)[:, 2:].max(axis=1) / weights[2] < math.log(62.5)
    assert within.sum() > 40
    np.testing.assert_allclose(decoded[within], boxes[within], atol=2e-3)
    np.testing.assert_allclose(
        decoded, [reference.decode(d, a, weights) for d, a in zip(deltas.numpy(), anchors, strict=True)], atol=2e-3
    )


def test_decoding_clamps_growth_at_1000_over_16():
    anchor = tf.constant([[0.0, 0.0, 16.0, 32.0]])
    huge = box_ops.decode_boxes(tf.constant([[0.0, 0.0, 99.0, 99.0]]), anchor, weights=UNIT).numpy()[0]
    np.testing.assert_allclose(huge[2:] - huge[:2], [1000, 2000], rtol=1e-5)
    just_below = box_ops.decode_boxes(tf.constant([[0.0, 0.0, 4.13, 4.13]]), anchor, weights=UNIT).numpy()[0]
    np.testing.assert_allclose(just_below[2] - just_below[0], 16 * math.exp(4.13), rtol=1e-5)


def test_the_clamp_applies_after_the_weights_are_divided_out():
    anchor = tf.constant([[0.0, 0.0, 16.0, 16.0]])
    box = box_ops.decode_boxes(tf.constant([[0.0, 0.0, 5.0, 5.0]]), anchor, weights=ROI_WEIGHTS).numpy()[0]
    np.testing.assert_allclose(box[2] - box[0], 16 * math.e, rtol=1e-5)


def test_decoding_keeps_a_degenerate_anchor_degenerate():
    anchor = tf.constant([[3.0, 4.0, 3.0, 4.0]])
    decoded = box_ops.decode_boxes(tf.constant([[2.0, -1.0, 3.0, 9.0]]), anchor, weights=UNIT)
    np.testing.assert_array_equal(decoded, [[3, 4, 3, 4]])


def test_functions_of_no_boxes_give_no_boxes():
    nothing = tf.zeros([0, 4])
    assert box_ops.box_area(nothing).shape == (0,)
    assert box_ops.clip_boxes(nothing, tf.constant([4, 5])).shape == (0, 4)
    assert box_ops.scale_boxes(nothing, 1.3).shape == (0, 4)
    assert box_ops.encode_boxes(nothing, nothing, weights=UNIT).shape == (0, 4)
    assert box_ops.decode_boxes(nothing, nothing, weights=UNIT).shape == (0, 4)

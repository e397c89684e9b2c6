"""The RPN head against plain NumPy, and the order of its outputs against that of the anchors."""

import numpy as np
import tensorflow as tf
from numpy_reference import conv2d, random_input, randomise, relu

from dh_keras.layers.rpn_head import RPNHead
from dh_keras.ops.anchors import grid_anchors


def test_one_head_predicts_for_all_levels_in_the_order_of_the_anchors():
    head = RPNHead(channels=6, anchors_per_cell=3)
    pyramid = {"P2": random_input(2, 5, 7, 4), "P3": random_input(2, 3, 4, 4, seed=2), "P4": random_input(2, 1, 2, 4)}
    head.build({level: x.shape for level, x in pyramid.items()})
    w = randomise(head)
    logits, deltas = head(pyramid)
    assert list(logits) == list(deltas) == list(pyramid)
    for level, features in pyramid.items():
        height, width = features.shape[1:3]
        hidden = relu(conv2d(features, w(head.conv.kernel), w(head.conv.bias)))
        objectness = conv2d(hidden, w(head.objectness_predictor.kernel), w(head.objectness_predictor.bias))
        delta_map = conv2d(hidden, w(head.delta_predictor.kernel), w(head.delta_predictor.bias))
        anchors = grid_anchors(tf.constant([height, width]), size=16, ratios=(0.5, 1.0, 2.0), stride=8).numpy()
        assert logits[level].shape == (2, len(anchors))
        assert deltas[level].shape == (2, len(anchors), 4)
        for index, anchor in enumerate(anchors):
            # Where the anchor is says which cell it belongs to, and its shape says which ratio it has.
            row, column = int((anchor[0] + anchor[2]) / 16), int((anchor[1] + anchor[3]) / 16)
            ratio = round(float(np.log2((anchor[2] - anchor[0]) / (anchor[3] - anchor[1])))) + 1
            np.testing.assert_allclose(logits[level][:, index], objectness[:, row, column, ratio], atol=1e-5)
            expected = delta_map[:, row, column, 4 * ratio : 4 * ratio + 4]
            np.testing.assert_allclose(deltas[level][:, index], expected, atol=1e-5)


def test_initial_weights_are_normal_with_deviation_one_hundredth_and_zero_biases():
    head = RPNHead(channels=64, anchors_per_cell=3)
    head.build({"P2": (None, None, None, 64)})
    for conv in (head.conv, head.objectness_predictor, head.delta_predictor):
        kernel = conv.kernel.numpy()
        np.testing.assert_allclose(kernel.std(), 0.01, rtol=0.2)
        np.testing.assert_allclose(kernel.mean(), 0, atol=0.003)
        assert not conv.bias.numpy().any()

"""The RPN head against plain NumPy, and the order of its outputs against that of the anchors."""

import numpy as np
import tensorflow as tf
from numpy_reference import conv2d, random_input, randomise, relu

from dh_keras.modeling.layers.rpn_head import RPNHead
from dh_keras.modeling.ops.anchors import grid_anchors


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


def test_predictions_for_some_anchors_are_those_of_all_and_so_are_their_gradients():
    head = RPNHead(channels=6, anchors_per_cell=3)
    arrays = {"P2": random_input(2, 5, 7, 4), "P3": random_input(2, 3, 4, 4, seed=2), "P4": random_input(2, 1, 2, 4)}
    head.build({level: x.shape for level, x in arrays.items()})
    randomise(head)
    total = 3 * (5 * 7 + 3 * 4 + 1 * 2)
    shuffled = np.stack([np.random.default_rng(seed).permutation(total) for seed in (0, 1)])
    weights = tf.constant(np.random.default_rng(2).normal(size=(2, total, 5)), tf.float32)
    for indices in (shuffled, shuffled[:, :5], shuffled[:, :1] * 0):
        indices = tf.constant(indices, tf.int32)
        results = []
        for some in (True, False):
            pyramid = {level: tf.constant(x, tf.float32) for level, x in arrays.items()}
            with tf.GradientTape() as tape:
                tape.watch(pyramid)
                if some:
                    logits, deltas = head.predict_at(pyramid, indices)
                else:
                    outputs = (tf.concat(list(output.values()), axis=1) for output in head(pyramid))
                    logits, deltas = (tf.gather(output, indices, batch_dims=1) for output in outputs)
                w = tf.gather(weights, indices, batch_dims=1)
                total_sum = tf.reduce_sum(logits * w[..., 0]) + tf.reduce_sum(deltas * w[..., 1:])
            sources = [*pyramid.values(), *(variable.value for variable in head.trainable_variables)]
            gradients = tape.gradient(total_sum, sources, unconnected_gradients="zero")
            results.append([logits, deltas, *map(tf.convert_to_tensor, gradients)])
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)

"""Kernels of a GPU that cannot take nothing are never given nothing."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.detections import select_detections
from dh_keras.modeling.ops.nms import class_aware_nms, nms
from dh_keras.modeling.ops.roi_align import roi_align
from dh_keras.modeling.proposals import generate_proposals


def guard(monkeypatch, name, argument):
    """Let an operation fail when an argument of it has no rows, and return the list of its calls."""
    operation, calls = getattr(tf.raw_ops, name), []

    def guarded(**arguments):
        calls.append(name)
        rows = tf.shape(arguments[argument])[0]
        with tf.control_dependencies([tf.debugging.assert_positive(rows, message=f"{name} of nothing")]):
            return operation(**{**arguments, argument: tf.identity(arguments[argument])})

    monkeypatch.setattr(tf.raw_ops, name, guarded)
    return calls


@pytest.fixture
def suppressions(monkeypatch):
    """Calls of the suppression kernel, none of which may see 0 boxes."""
    return guard(monkeypatch, "NonMaxSuppressionV4", "boxes")


@tf.function(input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([None]), tf.TensorSpec([None], tf.int32)])
def suppress_both_ways(boxes, scores, groups):
    options = {"max_output": 3, "iou_threshold": 0.5}
    return nms(boxes, scores, **options), class_aware_nms(boxes, scores, groups, **options)


def test_no_boxes_do_not_reach_the_suppression(suppressions):
    for indices, valid in suppress_both_ways(tf.zeros([0, 4]), tf.zeros([0]), tf.zeros([0], tf.int32)):
        assert indices.numpy().tolist() == [0, 0, 0]
        assert valid.numpy().tolist() == [False, False, False]
    assert len(suppressions) == 2


@pytest.mark.parametrize("scored", [(False, True), (True, False), (False, False)])
def test_images_without_detections_do_not_reach_the_suppression(suppressions, scored):
    boxes = [[2.0, 3.0, 12.0, 23.0], [4.0, 5.0, 24.0, 35.0]]
    probs = [[0.9, 0.0] if score else [0.0, 0.01] for score in scored]

    @tf.function(autograph=False)
    def select():
        return select_detections(
            tf.constant(boxes),
            tf.constant([0, 1]),
            tf.constant(probs),
            tf.zeros([2, 2, 4]),
            tf.constant([[40, 50], [40, 50]]),
            score_threshold=0.05,
            nms_iou=0.5,
            max_detections=3,
            geometry="continuous",
        )

    found = select()
    assert suppressions
    assert found.num_detections.numpy().tolist() == list(map(int, scored))
    for image, score in enumerate(scored):
        np.testing.assert_allclose(found.boxes[image, 0], boxes[image] if score else [0.0] * 4, atol=1e-5)
        assert not found.boxes[image, 1:].numpy().any()


@pytest.mark.parametrize("others", [0, 1])
def test_levels_without_usable_anchors_do_not_reach_the_suppression(suppressions, others):
    """One level has no anchors at all, one only anchors that are clipped away, and one has `others` that are usable."""
    anchors = {
        "P2": tf.zeros([0, 4]),
        "P3": tf.constant([[60.0, 60.0, 64.0, 64.0]]),
        "P4": tf.constant([[5.0, 5.0, 25.0, 35.0]])[:others],
    }

    @tf.function(autograph=False)
    def propose():
        return generate_proposals(
            {level: tf.zeros([1, boxes.shape[0]]) for level, boxes in anchors.items()},
            {level: tf.zeros([1, boxes.shape[0], 4]) for level, boxes in anchors.items()},
            anchors,
            tf.constant([[40, 50]]),
            pre_nms=10,
            post_nms=10,
            nms_iou=0.7,
            geometry="continuous",
        )

    proposals = propose()
    assert len(suppressions) == 1
    np.testing.assert_array_equal(proposals.valid, [[True, False][-1 - others :]])
    np.testing.assert_array_equal(proposals.boxes[proposals.valid], anchors["P4"])


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
@pytest.mark.parametrize("sampling_ratio", [2, 0])
@pytest.mark.parametrize("differentiable", [True, False])
def test_no_rois_do_not_reach_the_sparse_product(monkeypatch, geometry, sampling_ratio, differentiable):
    matrices = guard(monkeypatch, "SparseTensorToCSRSparseMatrix", "values")
    features = {f"P{level}": tf.random.normal([2, 64 >> level, 96 >> level, 3]) for level in range(2, 6)}
    options = {"sampling_ratio": sampling_ratio, "geometry": geometry, "differentiable": differentiable}

    @tf.function(input_signature=[tf.TensorSpec([None, 4]), *[tf.TensorSpec([None], tf.int32)] * 2], autograph=False)
    def pool(rois, image_index, levels):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, rois, image_index, levels, **options)
        return pooled, tape.gradient(pooled, features) if differentiable else {}

    pooled, gradients = pool(tf.zeros([0, 4]), tf.zeros([0], tf.int32), tf.zeros([0], tf.int32))
    assert len(matrices) == 1
    assert pooled.shape == (0, 7, 7, 3)
    for level, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, np.zeros(features[level].shape))

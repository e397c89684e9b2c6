"""Scores and selection of detections against a slow NumPy version."""

import numpy as np
import numpy_boxes as reference
import pytest
import tensorflow as tf

from dh_keras.modeling.detections import class_probs, select_detections

IMAGE_SIZES = np.array([[60, 110], [95, 70]], np.int32)
ROI_WEIGHTS = (10, 10, 5, 5)
NUM_CLASSES = 4


def softmax(logits):
    exponentials = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def select(rois, image_index, probs, deltas, **options):
    defaults = {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 100, "geometry": "continuous"}
    detections = select_detections(
        tf.constant(rois, tf.float32),
        tf.constant(image_index, tf.int32),
        tf.constant(probs, tf.float32),
        tf.constant(deltas, tf.float32),
        tf.constant(options.pop("image_sizes", IMAGE_SIZES)),
        **defaults | options,
    )
    return [x.numpy() for x in detections]


def random_heads(seed=0, count=80):
    generator = np.random.default_rng(seed)
    image_index = np.sort(generator.integers(0, 2, count))
    rois = np.concatenate([reference.random_boxes(generator, 1, *IMAGE_SIZES[i], smallest=20) for i in image_index])
    probs = softmax(generator.normal(size=(count, NUM_CLASSES + 1)) * 2)[:, :-1].astype(np.float32)
    deltas = generator.normal(size=(count, NUM_CLASSES, 4)).astype(np.float32)
    return rois, image_index, probs, deltas


def slow_detections(rois, image_index, probs, deltas, image, *, score_threshold, nms_iou, max_detections, legacy):
    found = []
    for label in range(NUM_CLASSES):
        rows = [r for r in range(len(rois)) if image_index[r] == image and probs[r, label] > score_threshold]
        boxes = [reference.decode(deltas[r, label], rois[r], ROI_WEIGHTS) for r in rows]
        boxes = [reference.clip(box, *IMAGE_SIZES[image], legacy=legacy) for box in boxes]
        scores = np.array([probs[r, label] for r in rows])
        found += [(scores[i], label, boxes[i]) for i in reference.greedy_nms(boxes, scores, nms_iou)]
    return sorted(found, key=lambda row: -row[0])[:max_detections]


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
@pytest.mark.parametrize(
    ("score_threshold", "nms_iou", "max_detections"), [(0.05, 0.5, 100), (0.2, 0.3, 7), (0, 0.7, 300)]
)
def test_detections_of_two_images_equal_the_definition(score_threshold, nms_iou, max_detections, geometry):
    heads = random_heads()
    options = {"score_threshold": score_threshold, "nms_iou": nms_iou, "max_detections": max_detections}
    boxes, scores, classes, counts = select(*heads, **options, geometry=geometry)
    assert boxes.shape == (2, max_detections, 4)
    assert scores.shape == classes.shape == (2, max_detections)
    for image in range(2):
        expected = slow_detections(*heads, image, **options, legacy=geometry == "legacy")
        count = counts[image]
        assert count == len(expected) > 5
        np.testing.assert_allclose(scores[image, :count], [row[0] for row in expected], rtol=1e-6)
        np.testing.assert_array_equal(classes[image, :count], [row[1] for row in expected])
        np.testing.assert_allclose(boxes[image, :count], [row[2] for row in expected], atol=1e-3)
        for padding in (boxes, scores, classes):
            assert not padding[image, count:].any()


def test_order_of_the_rois_in_the_batch_does_not_matter():
    heads = random_heads(1)
    order = np.random.default_rng(2).permutation(len(heads[0]))
    for one, other in zip(select(*heads), select(*(x[order] for x in heads)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_score_must_exceed_the_threshold():
    rois = [[0, 0, 20, 20], [30, 30, 50, 60]]
    probs = [[0.25, 0.0], [0.0, 0.2500001]]
    _, scores, classes, counts = select(
        rois, [0, 0], probs, np.zeros([2, 2, 4]), score_threshold=0.25, max_detections=5
    )
    assert counts.tolist() == [1, 0]
    assert classes[0].tolist() == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(scores[0], [0.2500001, 0, 0, 0, 0])


def test_the_box_of_a_class_comes_from_the_deltas_of_that_class():
    deltas = np.zeros([1, 2, 4])
    deltas[0, 1] = [10, 0, 0, 5 * np.log(2)]  # down by the height of 10, twice as wide
    boxes, scores, classes, counts = select([[10, 20, 20, 40]], [1], [[0.3, 0.6]], deltas, max_detections=3)
    assert counts.tolist() == [0, 2]
    assert classes[1].tolist() == [1, 0, 0]
    np.testing.assert_allclose(scores[1], [0.6, 0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(boxes[1], [[20, 10, 30, 50], [10, 20, 20, 40], [0, 0, 0, 0]], atol=1e-4)


def test_one_roi_may_be_several_classes_but_overlapping_rois_of_one_class_are_suppressed():
    rois = [[0, 0, 20, 20], [0, 0, 20, 21]]
    _, scores, classes, counts = select(rois, [0, 0], [[0.5, 0.4], [0.45, 0.3]], np.zeros([2, 2, 4]), max_detections=4)
    assert counts[0] == 2
    assert classes[0].tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(scores[0], [0.5, 0.4, 0, 0])


def test_an_image_without_detections_is_all_padding():
    rois, image_index, probs, deltas = random_heads(3)
    probs[image_index == 0] = 0.01
    boxes, scores, classes, counts = select(rois, image_index, probs, deltas)
    assert counts[0] == 0
    assert counts[1] > 5
    assert not boxes[0].any()
    assert not scores[0].any()
    assert not classes[0].any()


def test_no_rois_give_only_padding():
    nothing = np.zeros([0, 4]), np.zeros([0]), np.zeros([0, NUM_CLASSES]), np.zeros([0, NUM_CLASSES, 4])
    boxes, scores, classes, counts = select(*nothing, max_detections=6)
    assert counts.tolist() == [0, 0]
    assert boxes.shape == (2, 6, 4)
    assert not boxes.any()
    assert not scores.any()
    assert not classes.any()


def test_class_probs_are_the_softmax_without_background():
    generator = np.random.default_rng(4)
    outputs = {f"{head}_class_logits": generator.normal(size=(6, 5)).astype(np.float32) for head in ("fc", "conv")}
    for head in ("fc", "conv"):
        probs = class_probs(outputs, head)
        np.testing.assert_allclose(probs, softmax(outputs[f"{head}_class_logits"])[:, :4], rtol=1e-5)


def test_fused_probs_are_those_of_either_head_being_right():
    """Paper, section 4.3: s_fc + s_conv (1 - s_fc); 0.5 and 0.25 give 0.625."""
    fc, conv = np.array([[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]]), np.array([[0.25, 0.6, 0.15], [0.1, 0.3, 0.6]])
    with np.errstate(divide="ignore"):
        outputs = {"fc_class_logits": tf.constant(np.log(fc)), "conv_class_logits": tf.constant(np.log(conv))}
    np.testing.assert_allclose(class_probs(outputs, "fused"), [[0.625, 0.68], [1.0, 0.3]], rtol=1e-6)


def test_a_head_that_does_not_exist_is_not_needed():
    outputs = {"conv_class_logits": tf.zeros([2, 4])}
    np.testing.assert_allclose(class_probs(outputs, "conv"), np.full([2, 3], 0.25))

"""Proposals against a slow NumPy version: top of each level, suppression within it, top of all levels."""

import numpy as np
import numpy_boxes as reference
import pytest
import tensorflow as tf

from dh_keras.modeling.proposals import generate_proposals, pyramid_anchors

GRIDS = {"P2": (12, 17), "P3": (6, 9), "P4": (3, 5), "P5": (2, 3), "P6": (1, 2)}
SIZES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)
# A canvas of 48 x 68 pixels; both images are smaller, so that some anchors lie wholly in their padding.
IMAGE_SIZES = np.array([[45, 50], [30, 65]], np.int32)


def anchors_of(geometry="continuous"):
    pyramid = {level: tf.zeros([1, *grid, 4]) for level, grid in GRIDS.items()}
    return pyramid_anchors(pyramid, sizes=SIZES, ratios=RATIOS, geometry=geometry)


def random_outputs(seed, anchors, *, shift=0.6):
    """Logits without ties, and deltas that push some anchors over the border."""
    generator = np.random.default_rng(seed)
    logits, deltas = {}, {}
    for level, boxes in anchors.items():
        count = boxes.shape[0]
        logits[level] = np.stack([generator.permutation(count) for _ in IMAGE_SIZES]).astype(np.float32)
        logits[level] += generator.uniform(-0.4, 0.4, logits[level].shape).astype(np.float32)
        deltas[level] = generator.normal(size=(2, count, 4)).astype(np.float32) * [shift, shift, 0.4, 0.4]
    return logits, {level: np.float32(x) for level, x in deltas.items()}


def slow_proposals(logits, deltas, anchors, image, *, pre_nms, post_nms, nms_iou, legacy):
    kept = []
    canvas = np.ceil(IMAGE_SIZES[image] / 32) * 32  # what the image would be padded to if it were alone
    for level, (height, width) in GRIDS.items():
        stride = 2 ** int(level[1])
        cells = [(y, x) for y in range(height) for x in range(width) for _ in RATIOS]
        own = [y * stride < canvas[0] and x * stride < canvas[1] for y, x in cells]
        best = [i for i in np.argsort(-logits[level][image], kind="stable") if own[i]][:pre_nms]
        boxes = [reference.decode(deltas[level][image, i], anchors[level][i]) for i in best]
        boxes = np.array([reference.clip(box, *IMAGE_SIZES[image], legacy=legacy) for box in boxes])
        scores = logits[level][image, best]
        scores = np.where([reference.area(box) > 0 for box in boxes], scores, -np.inf)
        kept += [(scores[i], boxes[i]) for i in reference.greedy_nms(boxes, scores, nms_iou)]
    return sorted(kept, key=lambda row: -row[0])[:post_nms]


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
@pytest.mark.parametrize(("pre_nms", "post_nms", "nms_iou"), [(40, 25, 0.7), (1000, 60, 0.5), (10, 1000, 0.7)])
def test_proposals_of_two_images_equal_the_definition(pre_nms, post_nms, nms_iou, geometry):
    anchors = anchors_of(geometry)
    logits, deltas = random_outputs(0, anchors)
    options = {"pre_nms": pre_nms, "post_nms": post_nms, "nms_iou": nms_iou}
    proposals = generate_proposals(logits, deltas, anchors, tf.constant(IMAGE_SIZES), **options, geometry=geometry)
    candidates = sum(min(pre_nms, anchors[level].shape[0]) for level in GRIDS)
    rows = min(post_nms, candidates)
    assert proposals.boxes.shape == (2, rows, 4)
    assert proposals.scores.shape == proposals.valid.shape == (2, rows)
    for image in range(2):
        anchor_arrays = {level: boxes.numpy() for level, boxes in anchors.items()}
        expected = slow_proposals(logits, deltas, anchor_arrays, image, **options, legacy=geometry == "legacy")
        count = len(expected)
        assert 0 < count <= rows
        np.testing.assert_array_equal(proposals.valid[image], np.arange(rows) < count)
        np.testing.assert_allclose(proposals.scores[image, :count], [score for score, _ in expected])
        np.testing.assert_allclose(proposals.boxes[image, :count], [box for _, box in expected], atol=1e-3)
        assert (proposals.scores[image, count:].numpy() == -np.inf).all()


def test_fewer_survivors_than_asked_for_leave_padding_in_one_image_only():
    anchors = {"P6": tf.constant([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 21.0], [40.0, 10.0, 60.0, 30.0]])}
    logits = {"P6": tf.constant([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])}
    deltas = {"P6": tf.zeros([2, 3, 4])}
    # The second image ends at row 30: its best anchor is clipped away and must not be kept.
    proposals = generate_proposals(
        logits,
        deltas,
        anchors,
        tf.constant([[60, 60], [30, 60]]),
        pre_nms=10,
        post_nms=10,
        nms_iou=0.7,
        geometry="continuous",
    )
    np.testing.assert_array_equal(proposals.valid, [[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(proposals.boxes[0, :2], [[0, 0, 20, 20], [40, 10, 60, 30]])
    np.testing.assert_array_equal(proposals.boxes[1, 0], [0, 0, 20, 21])
    np.testing.assert_array_equal(proposals.scores[1], [2, -np.inf, -np.inf])


def test_legacy_clipping_leaves_a_pixel_of_every_anchor():
    proposals = generate_proposals(
        {"P6": tf.constant([[1.0]])},
        {"P6": tf.zeros([1, 1, 4])},
        {"P6": tf.constant([[40.0, 10.0, 60.0, 30.0]])},
        tf.constant([[30, 60]]),
        pre_nms=10,
        post_nms=10,
        nms_iou=0.7,
        geometry="legacy",
    )
    np.testing.assert_array_equal(proposals.boxes, [[[29, 10, 30, 30]]])


def test_boxes_of_different_levels_do_not_suppress_each_other():
    box = tf.constant([[5.0, 5.0, 25.0, 35.0]])
    proposals = generate_proposals(
        {"P2": tf.constant([[1.0]]), "P3": tf.constant([[2.0]])},
        {"P2": tf.zeros([1, 1, 4]), "P3": tf.zeros([1, 1, 4])},
        {"P2": box, "P3": box},
        tf.constant([[40, 50]]),
        pre_nms=10,
        post_nms=10,
        nms_iou=0.1,
        geometry="continuous",
    )
    np.testing.assert_array_equal(proposals.boxes, [[box[0], box[0]]])
    np.testing.assert_array_equal(proposals.scores, [[2, 1]])


def test_no_gradient_flows_to_the_rpn():
    anchors = anchors_of()
    logits, deltas = random_outputs(1, anchors)
    logits, deltas = ({level: tf.constant(x) for level, x in values.items()} for values in (logits, deltas))
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        proposals = generate_proposals(
            logits,
            deltas,
            anchors,
            tf.constant(IMAGE_SIZES),
            pre_nms=20,
            post_nms=20,
            nms_iou=0.7,
            geometry="continuous",
        )
        loss = tf.reduce_sum(proposals.boxes) + tf.reduce_sum(proposals.scores)
    assert tape.gradient(loss, list(logits.values()) + list(deltas.values())) == [None] * 10


def test_anchors_of_a_pyramid_take_the_size_and_stride_of_their_level():
    anchors = anchors_of()
    assert list(anchors) == list(GRIDS)
    for (level, (rows, columns)), size, stride in zip(GRIDS.items(), SIZES, (4, 8, 16, 32, 64), strict=True):
        boxes = anchors[level].numpy()
        assert boxes.shape == (rows * columns * 3, 4)
        np.testing.assert_allclose(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), size * size, rtol=1e-4)
        centre = (boxes[-1, :2] + boxes[-1, 2:]) / 2
        np.testing.assert_allclose(centre, [(rows - 1) * stride, (columns - 1) * stride], atol=1e-3)

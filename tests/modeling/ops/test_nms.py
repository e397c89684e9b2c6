"""Non-maximum suppression against the plain greedy loop."""

import numpy as np
import numpy_boxes as reference
import pytest
import tensorflow as tf

from dh_keras.modeling.ops.nms import NO_OVERLAP, class_aware_nms, move_apart, nms


def random_case(seed, count=80, height=60, width=110):
    generator = np.random.default_rng(seed)
    boxes = reference.random_boxes(generator, count, height, width, smallest=15)
    return boxes, generator.permutation(count).astype(np.float32), generator.integers(0, 4, count, np.int32)


def kept(result, max_output):
    """The valid indices, after a look at shape and padding."""
    indices, valid = (x.numpy() for x in result)
    assert indices.dtype == np.int32
    assert indices.shape == valid.shape == (max_output,)
    assert not valid[valid.sum() :].any()
    assert not indices[~valid].any()
    return indices[valid].tolist()


def test_suppression_worked_by_hand():
    boxes = tf.constant([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [0, 20, 10, 30]], tf.float32)
    scores = tf.constant([0.9, 0.95, 0.8, 0.1])
    # IoU of 1 with 0 is 0.6, with 2 it is 5/6; that of 0 with 2 is exactly 0.5 and not more.
    assert kept(nms(boxes, scores, max_output=4, iou_threshold=0.5), 4) == [1, 3]
    assert kept(nms(boxes, scores, max_output=4, iou_threshold=0.7), 4) == [1, 0, 3]
    assert kept(nms(boxes[::2], scores[::2], max_output=2, iou_threshold=0.5), 2) == [0, 1]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_random_boxes_are_kept_as_by_the_greedy_loop(seed, threshold):
    boxes, scores, _ = random_case(seed)
    expected = reference.greedy_nms(boxes, scores, threshold)
    assert 5 < len(expected) < 75
    assert kept(nms(boxes, scores, max_output=80, iou_threshold=threshold), 80) == expected


def test_output_has_the_asked_size_with_the_best_boxes():
    boxes, scores, _ = random_case(5)
    everything = reference.greedy_nms(boxes, scores, 0.5)
    assert kept(nms(boxes, scores, max_output=3, iou_threshold=0.5), 3) == everything[:3]
    assert kept(nms(boxes, scores, max_output=200, iou_threshold=0.5), 200) == everything


def test_the_output_size_may_be_a_tensor():
    boxes, scores, _ = random_case(6)
    run = tf.function(lambda size: nms(boxes, scores, max_output=size, iou_threshold=0.5))
    assert kept(run(tf.constant(5)), 5) == reference.greedy_nms(boxes, scores, 0.5, 5)


def test_candidates_at_minus_infinity_are_never_kept():
    boxes, scores, _ = random_case(7, count=20)
    scores[::2] = -np.inf
    expected = reference.greedy_nms(boxes, scores, 0.5)
    assert kept(nms(boxes, scores, max_output=20, iou_threshold=0.5), 20) == expected
    scores[:] = -np.inf
    assert kept(nms(boxes, scores, max_output=20, iou_threshold=0.5), 20) == []


@pytest.mark.parametrize("max_output", [0, 5])
def test_no_boxes_give_only_padding(max_output):
    no_boxes, no_scores = tf.zeros([0, 4]), tf.zeros([0])
    assert kept(nms(no_boxes, no_scores, max_output=max_output, iou_threshold=0.5), max_output) == []
    groups = tf.zeros([0], tf.int32)
    result = class_aware_nms(no_boxes, no_scores, groups, max_output=max_output, iou_threshold=0.5)
    assert kept(result, max_output) == []


def test_degenerate_boxes_neither_suppress_nor_are_suppressed():
    boxes = tf.constant([[0, 0, 10, 10], [5, 5, 5, 5], [5, 5, 5, 5]], tf.float32)
    assert kept(nms(boxes, tf.constant([0.9, 0.8, 0.7]), max_output=3, iou_threshold=0.5), 3) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_only_boxes_of_one_class_suppress_each_other(seed):
    boxes, scores, classes = random_case(seed + 10)
    expected = []
    for index in range(4):
        members = np.flatnonzero(classes == index)
        expected += members[reference.greedy_nms(boxes[members], scores[members], 0.5)].tolist()
    expected.sort(key=lambda index: -scores[index])
    assert kept(class_aware_nms(boxes, scores, classes, max_output=80, iou_threshold=0.5), 80) == expected
    assert kept(class_aware_nms(boxes, scores, classes, max_output=7, iou_threshold=0.5), 7) == expected[:7]


def test_classes_stay_apart_when_boxes_lie_left_of_and_above_the_image():
    boxes = tf.constant([[-50, -80, -10, -20], [-50, -80, -10, -20], [-50, -80, -10, -20]], tf.float32)
    result = class_aware_nms(
        boxes, tf.constant([0.9, 0.8, 0.7]), tf.constant([2, 0, 2]), max_output=3, iou_threshold=0.5
    )
    assert kept(result, 3) == [0, 1]


def test_small_boxes_of_a_late_class_are_suppressed_as_exactly_as_those_of_the_first():
    """Halves just below and above the threshold, in the last of a thousand classes of an image of 1333 pixels."""
    boxes = [[3.1, 7.3, 11.1, 15.3], [3.1, 7.3, 11.1, 11.25], [3.1, 11.25, 11.1, 15.3], [1300, 1320, 1310, 1333]]
    boxes = np.float32(boxes)
    scores = np.float32([0.9, 0.8, 0.7, 0.1])
    expected = reference.greedy_nms(boxes, scores, 0.5)
    assert expected == [0, 1, 3]
    for group in (0, 79, 999):
        groups = np.full(4, group, np.int32)
        assert kept(class_aware_nms(boxes, scores, groups, max_output=4, iou_threshold=0.5), 4) == expected, group


@pytest.mark.parametrize("count", [0, 20])
def test_a_kernel_that_ignores_a_threshold_of_minus_infinity_changes_nothing(monkeypatch, count):
    """Such a kernel keeps candidates at -inf, after all others."""
    kernel = tf.raw_ops.NonMaxSuppressionV4

    def lenient(*, scores, score_threshold, **options):
        return kernel(scores=tf.maximum(scores, -1e30), score_threshold=score_threshold, **options)

    boxes, scores, groups = random_case(7, count=count)
    scores[::2] = -np.inf
    expected = kept(nms(boxes, scores, max_output=20, iou_threshold=0.5), 20)
    by_group = kept(class_aware_nms(boxes, scores, groups, max_output=20, iou_threshold=0.5), 20)
    monkeypatch.setattr(tf.raw_ops, "NonMaxSuppressionV4", lenient)
    assert kept(nms(boxes, scores, max_output=20, iou_threshold=0.5), 20) == expected
    assert kept(class_aware_nms(boxes, scores, groups, max_output=20, iou_threshold=0.5), 20) == by_group
    assert 0 < len(expected) < 10 or not count


def boxes_at_the_threshold(generator, count, threshold):
    """Boxes up to 1344 pixels in pairs whose IoU is the threshold up to a few roundings."""
    sizes = np.exp(generator.uniform(np.log(2), np.log(600), (count, 2)))
    starts = generator.uniform(0, 1344 - sizes)
    first = np.concatenate([starts, starts + sizes], axis=1).astype(np.float32)
    second = first.copy()
    second[:, 3] = first[:, 1] + (first[:, 3] - first[:, 1]) * np.float32(threshold)
    roundings = generator.integers(-3, 4, count)
    second[:, 3] += roundings * np.spacing(second[:, 3])
    return np.concatenate([first, second])


def float32_greedy_nms(boxes, scores, threshold):
    """The greedy loop in the kernel's own arithmetic, one candidate at a time."""
    areas, kept = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), []
    for index in np.argsort(-scores, kind="stable"):
        corners = np.maximum(boxes[kept, :2], boxes[index, :2]), np.minimum(boxes[kept, 2:], boxes[index, 2:])
        sides = np.maximum(corners[1] - corners[0], np.float32(0))
        overlap = sides[:, 0] * sides[:, 1]
        if not (overlap / (areas[kept] + areas[index] - overlap) > np.float32(threshold)).any():
            kept.append(int(index))
    return kept


@pytest.mark.parametrize("threshold", [0.7, 0.5])
def test_groups_that_are_moved_apart_are_suppressed_as_each_alone_to_the_last_rounding(threshold):
    generator = np.random.default_rng(0)
    groups = [boxes_at_the_threshold(generator, count, threshold) for count in (150, 90, 120, 60, 80, 40, 1, 30)]
    scores = generator.permutation(sum(map(len, groups))).astype(np.float32)
    expected, first = [], 0
    for boxes in groups:
        own = float32_greedy_nms(boxes, scores[first : first + len(boxes)], threshold)
        assert kept(nms(boxes, scores[first:][: len(boxes)], max_output=300, iou_threshold=threshold), 300) == own
        expected += [first + index for index in own]
        first += len(boxes)
    expected.sort(key=lambda index: -scores[index])
    assert len(scores) * 0.55 < len(expected) < len(scores) * 0.95  # of the pairs, some on either side
    moved = move_apart([tf.constant(boxes) for boxes in groups])
    assert kept(nms(moved, scores, max_output=len(scores), iou_threshold=threshold), len(scores)) == expected
    assert kept(nms(moved, scores, max_output=100, iou_threshold=threshold), 100) == expected[:100]


def test_equal_boxes_of_groups_that_are_moved_apart_do_not_touch():
    box = [[0.0, 0.0, 1344.0, 1344.0], [0.0, 0.0, 0.01, 0.01], [0.0, 0.0, 0.0, 0.0]]
    moved = move_apart([tf.constant(box)] * 8)
    assert np.isfinite(moved).all()
    scores = np.arange(24, 0, -1, np.float32)
    without_the_smaller_of_two = [index for index in range(24) if index % 3 != 1]
    assert kept(nms(moved, scores, max_output=24, iou_threshold=NO_OVERLAP), 24) == without_the_smaller_of_two


def test_equal_scores_are_kept_in_their_order():
    boxes = np.float32([[0, 10 * i, 5, 10 * i + 5] for i in range(40)])
    assert kept(nms(boxes, np.repeat(np.float32([2, 1]), 20), max_output=30, iou_threshold=0.5), 30) == list(range(30))

"""Targets of anchors and RoIs, with a slow NumPy version of the assignment."""

import numpy as np
import numpy_boxes as reference
import pytest
import tensorflow as tf

from dh_keras.modeling.targets import anchor_targets, roi_targets

SEEDS = tf.constant([[3, 10], [3, 11]], tf.int64)
IMAGE_SIZES = np.array([[90, 140], [120, 110]], np.int32)
ROI_WEIGHTS = (10, 10, 5, 5)
NUM_CLASSES = 4


def ground_truth(seed=0, valid=((True, True, False), (True, True, True))):
    """Boxes of two images; rows of padding hold boxes too, which must never be looked at."""
    generator = np.random.default_rng(seed)
    boxes = [reference.random_boxes(generator, 3, *size, smallest=20) for size in IMAGE_SIZES]
    return np.stack(boxes), generator.integers(0, NUM_CLASSES, (2, 3)).astype(np.int32), np.array(valid)


def random_anchors(seed=1, count=350):
    """Anywhere, many of them across the border of one image or both, and a few near each ground truth."""
    generator = np.random.default_rng(seed)
    anywhere = reference.random_boxes(generator, count, 170, 190, smallest=10) - np.float32(25)
    near = np.repeat(ground_truth()[0].reshape(-1, 4), 8, axis=0)
    return np.concatenate([anywhere, near + generator.uniform(-4, 4, near.shape).astype(np.float32)])


def call_anchor_targets(
    anchors, boxes, valid, *, batch_size=1000, positive_fraction=1.0, on_canvas=None, image_sizes=IMAGE_SIZES, **options
):
    defaults = {
        "positive_iou": 0.7,
        "negative_iou": 0.3,
        "low_quality_iou": 0.0,
        "low_quality_own_box": False,
        "ignore_border": False,
    }
    targets = anchor_targets(
        tf.constant(anchors),
        tf.ones([len(boxes), len(anchors)], tf.bool) if on_canvas is None else tf.constant(on_canvas),
        tf.constant(boxes),
        tf.constant(valid),
        tf.constant(image_sizes),
        SEEDS[: len(boxes)],
        **defaults | options,
        batch_size=batch_size,
        positive_fraction=positive_fraction,
    )
    return [x.numpy() for x in targets]


def slow_anchor_assignment(anchors, boxes, valid, image_size, ignore_border):
    """For each anchor the index of its box, -1 for background, None for ignored."""
    overlaps = reference.iou_matrix(anchors, boxes[valid])
    columns = np.flatnonzero(valid)
    result = []
    for anchor, row in zip(anchors, overlaps, strict=True):
        best = row.max(initial=0.0)
        is_best = any(row[j] > 0 and row[j] == overlaps[:, j].max() for j in range(len(columns)))
        if ignore_border and (min(anchor) < 0 or anchor[2] > image_size[0] or anchor[3] > image_size[1]):
            result.append(None)
        elif best >= 0.7 or is_best:
            result.append(int(columns[row.argmax()]))
        else:
            result.append(-1 if best < 0.3 else None)
    return result


@pytest.mark.parametrize("ignore_border", [True, False])
def test_anchors_are_assigned_and_encoded_as_defined(ignore_border):
    anchors, (boxes, _, valid) = random_anchors(), ground_truth()
    indices, sampled, is_foreground, box_targets = call_anchor_targets(
        anchors, boxes, valid, ignore_border=ignore_border
    )
    for image in range(2):
        expected = slow_anchor_assignment(anchors, boxes[image], valid[image], IMAGE_SIZES[image], ignore_border)
        foreground = indices[image, is_foreground[image]]
        background = indices[image, sampled[image] & ~is_foreground[image]]
        assert sorted(foreground) == [i for i, match in enumerate(expected) if match is not None and match >= 0]
        assert sorted(background) == [i for i, match in enumerate(expected) if match == -1]
        assert len(foreground) > 5
        if ignore_border:
            assert expected.count(None) > 100
        for position, index in enumerate(indices[image]):
            if is_foreground[image, position]:
                deltas = reference.encode(boxes[image, expected[index]], anchors[index])
                np.testing.assert_allclose(box_targets[image, position], deltas, atol=1e-4)
            else:
                assert not box_targets[image, position].any()


def test_a_box_whose_best_anchor_crosses_the_border_gives_no_other_anchor_a_low_quality_match():
    boxes = np.float32([[[10, 0, 30, 40]], [[10, 0, 30, 40]]])
    # Anchor 0 (IoU 2 / 3) crosses the left border; anchor 1 (IoU 0.5) does not.
    anchors = np.float32([[10, -10, 30, 30], [10, 0, 30, 20], [60, 60, 80, 80]])
    valid = np.array([[True], [True]])
    _, sampled, is_foreground, _ = call_anchor_targets(anchors, boxes, valid, ignore_border=True)
    assert not is_foreground.any()
    assert sampled.sum(axis=1).tolist() == [1, 1]
    indices, _, is_foreground, _ = call_anchor_targets(anchors, boxes, valid, ignore_border=False)
    assert [row[mask].tolist() for row, mask in zip(indices, is_foreground, strict=True)] == [[0], [0]]


def test_the_options_of_low_quality_matches_reach_the_assignment():
    # The first anchor is the better half of box 0 and the only one that touches box 1.
    boxes = np.float32([[[10, 10, 30, 50], [10, 40, 30, 100]]] * 2)
    anchors = np.float32([[10, 20, 30, 50], [60, 60, 70, 70]])
    valid = np.ones([2, 2], bool)
    for own_box, expected in ((False, 0), (True, 1)):
        _, _, is_foreground, box_targets = call_anchor_targets(anchors, boxes, valid, low_quality_own_box=own_box)
        assert is_foreground[0].tolist() == [True, False]
        np.testing.assert_allclose(box_targets[0, 0], reference.encode(boxes[0, expected], anchors[0]), atol=1e-5)
    _, sampled, is_foreground, _ = call_anchor_targets(
        anchors, boxes, valid, positive_iou=0.8, low_quality_iou=0.76, negative_iou=0.1
    )
    assert sampled.sum() == 2
    assert not is_foreground.any()


@pytest.mark.parametrize("ignore_border", [True, False])
def test_each_image_of_a_batch_has_the_targets_that_it_has_alone(ignore_border):
    """Also where the best anchors of a box are not the image's own, which leaves it a low-quality match."""
    anchors, (boxes, _, valid) = random_anchors(), ground_truth()
    on_canvas = np.random.default_rng(3).uniform(size=(2, len(anchors))) < 0.7
    for image in range(2):
        on_canvas[image] &= reference.iou_matrix(anchors, boxes[image, :1])[:, 0] < 0.6
    options = {"ignore_border": ignore_border}
    together = call_anchor_targets(anchors, boxes, valid, on_canvas=on_canvas, **options)
    for image in range(2):
        (own,) = np.nonzero(on_canvas[image])
        one = slice(image, image + 1)
        alone = call_anchor_targets(anchors[own], boxes[one], valid[one], image_sizes=IMAGE_SIZES[one], **options)
        rows = []
        for targets, row, names in ((together, image, np.arange(len(anchors))), (alone, 0, own)):
            indices, sampled, is_foreground, box_targets = (values[row] for values in targets)
            order = np.argsort(names[indices[sampled]])
            rows.append([values[sampled][order] for values in (names[indices], is_foreground, box_targets)])
        assert rows[0][1].sum() > 2
        for found, expected in zip(*rows, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_at_most_the_positive_fraction_of_the_sampled_anchors_is_foreground():
    boxes = np.float32([[[10, 10, 60, 80]]] * 2)
    anchors = np.float32([[10, 10, 60, 80 + i / 10] for i in range(30)] + [[70, 10, 85, 20 + i] for i in range(30)])
    _, sampled, is_foreground, _ = call_anchor_targets(
        anchors, boxes, np.ones([2, 1], bool), batch_size=16, positive_fraction=0.5
    )
    assert sampled.all()
    assert is_foreground.sum(axis=1).tolist() == [8, 8]


@pytest.mark.parametrize("valid", [[[False] * 3, [True] * 3], [[False] * 3, [False] * 3]])
def test_an_image_without_ground_truth_has_only_background_anchors(valid):
    anchors, (boxes, _, valid) = random_anchors(), ground_truth(valid=valid)
    _, sampled, is_foreground, box_targets = call_anchor_targets(anchors, boxes, valid, batch_size=50)
    assert sampled.all()
    assert is_foreground.any(axis=1).tolist() == valid.any(axis=1).tolist()
    assert not box_targets[~is_foreground].any()
    assert np.isfinite(box_targets).all()


def test_no_rows_of_ground_truth_at_all_are_background_too():
    _, sampled, is_foreground, box_targets = call_anchor_targets(
        random_anchors(), np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], bool)
    )
    assert sampled.all()
    assert not is_foreground.any()
    assert not box_targets.any()
    rois, image_index, classes, is_foreground, box_targets = call_roi_targets(
        random_proposals(), np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], np.int32), np.zeros([2, 0], bool)
    )
    assert len(rois) == len(image_index) == len(random_proposals()[0]) * 2
    assert (classes == NUM_CLASSES).all()
    assert not is_foreground.any()
    assert not box_targets.any()


# RoIs.


def random_proposals(seed=2, count=60):
    generator = np.random.default_rng(seed)
    return np.stack([reference.random_boxes(generator, count, *size, smallest=15) for size in IMAGE_SIZES])


def call_roi_targets(proposals, boxes, classes, valid, *, proposals_valid=None, batch_size=1000, fraction=1.0):
    if proposals_valid is None:
        proposals_valid = np.ones(proposals.shape[:2], bool)
    targets = roi_targets(
        tf.constant(proposals),
        tf.constant(proposals_valid),
        tf.constant(boxes),
        tf.constant(classes),
        tf.constant(valid),
        SEEDS,
        num_classes=NUM_CLASSES,
        foreground_iou=0.5,
        batch_size=batch_size,
        foreground_fraction=fraction,
    )
    return [x.numpy() for x in targets]


def test_every_proposal_and_ground_truth_is_assigned_and_encoded_as_defined():
    boxes, gt_classes, valid = ground_truth()
    proposals = random_proposals()
    proposals_valid = np.arange(60)[None] < np.array([[60], [45]])
    rois, image_index, classes, is_foreground, box_targets = call_roi_targets(
        proposals, boxes, gt_classes, valid, proposals_valid=proposals_valid
    )
    for image in range(2):
        mine = image_index == image
        candidates = np.concatenate([boxes[image, valid[image]], proposals[image, proposals_valid[image]]])
        assert sorted(map(tuple, rois[mine])) == sorted(map(tuple, candidates))
        found = 0
        for roi, label, foreground, deltas in zip(
            rois[mine], classes[mine], is_foreground[mine], box_targets[mine], strict=True
        ):
            overlaps = np.where(valid[image], reference.iou_matrix([roi], boxes[image])[0], -1)
            assert foreground == (overlaps.max() >= 0.5)
            if foreground:
                best = overlaps.argmax()
                assert label == gt_classes[image, best]
                np.testing.assert_allclose(deltas, reference.encode(boxes[image, best], roi, ROI_WEIGHTS), atol=1e-3)
                found += 1
            else:
                assert label == NUM_CLASSES
                assert not deltas.any()
        assert found > valid[image].sum()


def test_ground_truth_joins_the_proposals_with_zero_deltas():
    boxes, gt_classes, valid = ground_truth()
    far_away = np.float32([[[0, 0, 3, 3]]] * 2)
    rois, image_index, classes, is_foreground, box_targets = call_roi_targets(far_away, boxes, gt_classes, valid)
    assert sorted(image_index) == [0] * 3 + [1] * 4
    for image in range(2):
        mine = (image_index == image) & is_foreground
        pairs = {(tuple(box), label) for box, label in zip(rois[mine], classes[mine], strict=True)}
        expected = zip(boxes[image, valid[image]], gt_classes[image, valid[image]], strict=True)
        assert pairs == {(tuple(box), label) for box, label in expected}
    np.testing.assert_allclose(box_targets, np.zeros_like(box_targets), atol=1e-6)


def test_a_quarter_of_the_sampled_rois_is_foreground_and_each_image_fills_its_share():
    boxes = np.float32([[[10, 10, 60, 80]]] * 2)
    near = [[10, 10, 60, 80 - i / 2] for i in range(30)]
    far = [[70, 10, 85, 20 + i] for i in range(40)]
    _, image_index, classes, is_foreground, _ = call_roi_targets(
        np.float32([near + far] * 2),
        boxes,
        np.int32([[2], [3]]),
        np.ones([2, 1], bool),
        batch_size=32,
        fraction=0.25,
    )
    assert np.bincount(image_index).tolist() == [32, 32]
    for image, label in ((0, 2), (1, 3)):
        mine = image_index == image
        assert is_foreground[mine].sum() == 8
        assert (classes[mine & is_foreground] == label).all()
        assert (classes[mine & ~is_foreground] == NUM_CLASSES).all()


@pytest.mark.parametrize("valid", [[[False] * 3, [True] * 3], [[False] * 3, [False] * 3]])
def test_an_image_without_ground_truth_has_only_background_rois_and_padding_is_no_roi(valid):
    boxes, gt_classes, valid = ground_truth(valid=valid)
    rois, image_index, classes, is_foreground, box_targets = call_roi_targets(
        random_proposals(), boxes, gt_classes, valid
    )
    assert np.bincount(image_index).tolist() == (60 + valid.sum(axis=1)).tolist()
    assert not is_foreground[image_index == 0].any()
    assert (classes[image_index == 0] == NUM_CLASSES).all()
    assert is_foreground[image_index == 1].any() == valid[1].any()
    assert not {tuple(box) for box in rois[image_index == 0]} & {tuple(box) for box in boxes[0]}
    assert not box_targets[~is_foreground].any()


def test_without_proposals_and_ground_truth_there_are_no_rois():
    boxes, gt_classes, valid = ground_truth(valid=[[False] * 3, [False] * 3])
    proposals = random_proposals()
    targets = call_roi_targets(proposals, boxes, gt_classes, valid, proposals_valid=np.zeros([2, 60], bool))
    assert [x.shape for x in targets] == [(0, 4), (0,), (0,), (0,), (0, 4)]


def test_the_same_seeds_draw_the_same_rois():
    boxes, gt_classes, valid = ground_truth()
    first, second = (
        call_roi_targets(random_proposals(), boxes, gt_classes, valid, batch_size=10, fraction=0.25) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)

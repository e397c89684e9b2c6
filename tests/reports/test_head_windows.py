"""Windows around an object have the IoU that they are made for, and stay out of the way of other objects."""

import numpy as np
import pytest
from numpy_boxes import iou

from dh_keras.reports.heads.sliding_windows import IOU_BINS, sliding_windows, unit_windows


def test_every_bin_of_iou_gets_ten_windows_at_its_centre():
    ious = np.array([iou(window, [0, 0, 1, 1]) for window in unit_windows()])
    expected = np.tile((np.arange(IOU_BINS) + 0.5) / IOU_BINS, 10)
    np.testing.assert_allclose(ious, expected, atol=1e-9)


def test_windows_that_only_move_or_only_grow_are_where_the_formula_says():
    target = (np.arange(IOU_BINS) + 0.5) / IOU_BINS
    rays = unit_windows().reshape(10, IOU_BINS, 4)
    way = (1 - target) / (1 + target)  # a shift d leaves an intersection of 1 - d in a union of 1 + d
    np.testing.assert_allclose(rays[0], np.stack([-way, 0 * way, 1 - way, 0 * way + 1], axis=1), atol=1e-9)
    np.testing.assert_allclose(rays[3], np.stack([0 * way, way, 0 * way + 1, 1 + way], axis=1), atol=1e-9)
    for ray, side in ((rays[8], 1 / np.sqrt(target)), (rays[9], np.sqrt(target))):
        np.testing.assert_allclose(ray, 0.5 + side[:, None] / 2 * [-1, -1, 1, 1], atol=1e-9)


def test_diagonal_windows_keep_their_proportions_and_differ_in_size():
    rays = unit_windows().reshape(10, IOU_BINS, 4)[4:8]
    sides = rays[..., 2:] - rays[..., :2]
    np.testing.assert_allclose(sides[..., 0], sides[..., 1], rtol=1e-9)
    assert (sides[:2] > 1).all()
    assert (sides[2:] < 1).all()
    moved = np.sign(((rays[..., 2:] + rays[..., :2]) / 2 - 0.5).mean(axis=1))
    assert moved.tolist() == [[-1, -1], [1, 1], [-1, 1], [1, -1]]


def test_objects_of_any_shape_get_the_same_ious():
    boxes = np.array([[900, 920, 940, 1040], [1600, 1600, 1625, 1610]], np.float32)
    windows = sliding_windows(boxes, np.array([0, 1]), (2400, 2400))
    assert windows.object_index.tolist() == [0] * 200 + [1] * 200
    expected = np.tile((np.arange(IOU_BINS) + 0.5) / IOU_BINS, 20)
    np.testing.assert_allclose(windows.ious, expected, atol=1e-4)
    found = [iou(w, boxes[i]) for w, i in zip(windows.boxes, windows.object_index, strict=True)]
    np.testing.assert_allclose(windows.ious, found, atol=1e-5)
    assert (windows.outside, windows.nearer_another) == (0, 0)
    assert windows.boxes.dtype == windows.ious.dtype == np.float32


def test_windows_are_clipped_to_the_image_and_left_out_when_most_is_outside():
    box = np.array([[0, 40, 20, 60]], np.float32)
    windows = sliding_windows(box, np.array([0]), (100, 100))
    assert len(windows.boxes) + windows.outside == 200
    assert windows.boxes.min() >= 0
    up = unit_windows()[:IOU_BINS]
    visible = 1 + up[:, 0]  # of a window that moved up by -y1 sides, in sides
    kept = visible >= 0.5
    assert 0 < kept.sum() < IOU_BINS
    np.testing.assert_allclose(windows.boxes[: kept.sum(), 2], 20 * visible[kept], rtol=1e-6)
    # What is left of such a window lies inside the object, whose share it is.
    np.testing.assert_allclose(windows.ious[: kept.sum()], visible[kept], rtol=1e-5)


def test_tiny_remains_are_left_out():
    windows = sliding_windows(np.array([[50, 50, 52, 52]], np.float32), np.array([0]), (100, 100))
    assert (windows.boxes[:, 2:] - windows.boxes[:, :2] >= 1 - 1e-5).all()
    shrunk = np.sqrt((np.arange(IOU_BINS) + 0.5) / IOU_BINS) * 2
    assert windows.outside >= (shrunk < 1).sum() > 0


@pytest.mark.parametrize(("classes", "left_out"), [([0, 0], True), ([0, 1], False)])
def test_windows_on_another_object_of_the_class_are_left_out(classes, left_out):
    boxes = np.array([[300, 300, 340, 340], [300, 330, 340, 370]], np.float32)
    windows = sliding_windows(boxes, np.array(classes), (700, 700))
    ious = np.array([[iou(window, box) for box in boxes] for window in windows.boxes])
    own = ious[np.arange(len(ious)), windows.object_index]
    assert (windows.nearer_another > 0) == left_out
    assert (ious.max(axis=1) > own + 1e-6).any() != left_out
    assert len(windows.boxes) + windows.nearer_another == 400
    np.testing.assert_allclose(windows.ious, own, atol=1e-5)

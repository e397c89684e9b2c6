"""Assignment worked by hand on small overlap tables, and a slow version of the rule on random ones."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.constants import MATCH_BACKGROUND as BG
from dh_keras.modeling.constants import MATCH_IGNORE as IGNORE
from dh_keras.modeling.ops.matching import match_boxes


def match(iou, valid=None, low_quality_iou=None, low_quality_own_box=False, foreground_iou=0.7, background_iou=0.3):
    iou = np.asarray(iou, np.float32)
    valid = np.ones(iou.shape[:-2] + iou.shape[-1:], bool) if valid is None else np.asarray(valid)
    matches = match_boxes(
        tf.constant(iou),
        tf.constant(valid),
        foreground_iou=foreground_iou,
        background_iou=background_iou,
        low_quality_iou=low_quality_iou,
        low_quality_own_box=low_quality_own_box,
    )
    assert matches.dtype == tf.int64
    return matches.numpy().tolist()


def test_thresholds_split_boxes_into_matched_ignored_and_background():
    overlaps = [[0.9, 0.1], [0.2, 0.71], [0.7, 0.0], [0.5, 0.6], [0.3, 0.0], [0.29, 0.2], [0.0, 0.0]]
    assert match(overlaps) == [0, 1, 0, IGNORE, IGNORE, BG, BG]


def test_equal_thresholds_leave_nothing_ignored():
    overlaps = [[0.5, 0.4], [0.49, 0.1], [0.0, 0.0]]
    assert match(overlaps, foreground_iou=0.5, background_iou=0.5) == [0, BG, BG]


def test_a_tie_between_ground_truths_goes_to_the_first():
    assert match([[0.8, 0.8, 0.1]]) == [0]


def test_best_boxes_of_a_ground_truth_are_matched_ties_included():
    overlaps = [[0.4, 0.0], [0.4, 0.0], [0.39, 0.0], [0.0, 0.2], [0.1, 0.1]]
    assert match(overlaps, low_quality_iou=0.0) == [0, 0, IGNORE, 1, BG]
    assert match(overlaps) == [IGNORE, IGNORE, IGNORE, BG, BG]


def test_a_low_quality_match_keeps_the_ground_truth_that_overlaps_the_box_most():
    # The first box is the best one of both ground truths.
    assert match([[0.5, 0.6], [0.1, 0.1]], low_quality_iou=0.0) == [1, BG]


def test_a_low_quality_match_can_take_the_ground_truth_that_it_is_the_best_of():
    overlaps = [[0.8, 0.6, 0.0], [0.9, 0.1, 0.0], [0.3, 0.0, 0.2], [0.75, 0.0, 0.1]]
    # Box 0 overlaps ground truth 0 most but is the best one of 1; box 2 likewise with 2; 3 is nobody's best one.
    assert match(overlaps, low_quality_iou=0.0) == [0, 0, 0, 0]
    assert match(overlaps, low_quality_iou=0.0, low_quality_own_box=True) == [1, 0, 2, 0]
    assert match(overlaps, low_quality_iou=0.3, low_quality_own_box=True) == [1, 0, IGNORE, 0]
    # The last of several, as in a loop over the ground truth; padding is none of them.
    overlaps = [[0.5, 0.6, 0.4, 0.4]]
    valid = [True, True, True, False]
    assert match(overlaps, valid, low_quality_iou=0.0, low_quality_own_box=True) == [2]


def test_low_quality_matches_need_the_given_overlap():
    overlaps = [[0.25, 0.0], [0.0, 0.35], [0.0, 0.0]]
    assert match(overlaps, low_quality_iou=0.3) == [BG, 1, BG]
    assert match(overlaps, low_quality_iou=0.25) == [0, 1, BG]


def test_boxes_that_touch_nothing_are_never_low_quality_matches():
    assert match([[0.0, 0.8], [0.0, 0.0]], low_quality_iou=0.0) == [1, BG]
    assert match([[0.0], [0.0]], low_quality_iou=0.0) == [BG, BG]


def test_padded_ground_truth_is_never_matched_nor_makes_low_quality_matches():
    overlaps = [[0.9, 0.2], [0.95, 0.75], [0.6, 0.1]]
    assert match(overlaps, valid=[False, True], low_quality_iou=0.0) == [BG, 1, BG]


@pytest.mark.parametrize("low_quality_iou", [None, 0.0])
def test_without_ground_truth_everything_is_background(low_quality_iou):
    assert match(np.zeros([3, 0]), low_quality_iou=low_quality_iou) == [BG] * 3
    assert match([[0.9], [0.8]], valid=[False], low_quality_iou=low_quality_iou) == [BG] * 2


def test_no_boxes_have_no_matches():
    assert match(np.zeros([0, 2]), low_quality_iou=0.0) == []
    assert match(np.zeros([0, 0])) == []


def test_a_batch_gives_what_its_images_give_alone():
    generator = np.random.default_rng(3)
    # A few discrete overlaps, so that ties are frequent.
    overlaps = generator.choice(
        np.float32([0, 0.1, 0.3, 0.45, 0.7, 0.9]), (3, 20, 4), p=[0.6, 0.1, 0.1, 0.1, 0.05, 0.05]
    )
    valid = np.array([[True, True, True, False], [False] * 4, [True] * 4])
    expected = [_slow_match(o, v, 0.7, 0.3) for o, v in zip(overlaps, valid, strict=True)]
    assert match(overlaps, valid, low_quality_iou=0.0) == expected


def _slow_match(iou, valid, foreground_iou, background_iou):
    columns = np.flatnonzero(valid)
    matches = []
    for row in iou:
        best = max(columns, key=lambda column: row[column], default=None)
        if best is None or row[best] < background_iou:
            matches.append(BG)
        else:
            matches.append(int(best) if row[best] >= foreground_iou else IGNORE)
        if any(row[column] > 0 and row[column] == iou[:, column].max() for column in columns):
            matches[-1] = int(best)
    return matches

"""Where the two families assign anchors differently."""

import numpy as np
import tensorflow as tf

from dh_keras.modeling.ops.matching import match_boxes
from dh_keras.modeling.targets import anchor_targets


def match(iou, own_box):
    return (
        match_boxes(
            iou,
            tf.constant([True, True]),
            foreground_iou=0.7,
            background_iou=0.3,
            low_quality_iou=0.3,
            low_quality_own_box=own_box,
        )
        .numpy()
        .tolist()
    )


def test_the_best_anchor_of_a_box_learns_the_box_it_overlaps_most_or_its_own():
    iou = tf.constant([[0.5, 0.6], [0.1, 0.1], [0.4, 0.65]])
    assert match(iou, False) == [1, -1, 1]
    assert match(iou, True) == [0, -1, 1]


def test_the_last_box_wins_when_an_anchor_is_the_best_of_several():
    iou = tf.constant([[0.6, 0.5], [0.1, 0.1]])
    assert match(iou, False) == [0, -1]
    assert match(iou, True) == [1, -1]


def test_an_ignored_anchor_that_is_the_best_of_a_box_leaves_it_without_a_low_quality_match():
    anchors = tf.constant([[-1.0, 0.0, 9.0, 10.0], [3.0, 0.0, 13.0, 10.0], [40.0, 40.0, 50.0, 50.0]])

    def foreground(ignore_border):
        targets = anchor_targets(
            anchors,
            tf.ones([1, 3], tf.bool),
            tf.constant([[[0.0, 0.0, 9.0, 14.0]]]),
            tf.constant([[True]]),
            tf.constant([[64, 64]]),
            tf.constant([[1, 2]], tf.int64),
            positive_iou=0.7,
            negative_iou=0.3,
            low_quality_iou=0.0,
            low_quality_own_box=False,
            ignore_border=ignore_border,
            batch_size=3,
            positive_fraction=1.0,
        )
        return np.sort(targets.indices.numpy()[targets.is_foreground.numpy()]).tolist()

    assert foreground(ignore_border=False) == [0]
    assert foreground(ignore_border=True) == []

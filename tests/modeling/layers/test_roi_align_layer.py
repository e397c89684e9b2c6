"""The RoIAlign layer: enlarged RoIs, the level of the unscaled ones, and its options."""

import numpy as np
import pytest
import tensorflow as tf
from modeling.ops import roi_align_oracle as oracle
from numpy_reference import random_input

from dh_keras.modeling.layers.roi_align import RoIAlign

PYRAMID = {
    "P2": random_input(2, 75, 107, 3, seed=2),
    "P3": random_input(2, 38, 54, 3, seed=3),
    "P4": random_input(2, 19, 27, 3, seed=4),
    "P5": random_input(2, 10, 14, 3, seed=5),
}
# The square of 100 pixels is pooled from P2 although 1.3 times it would belong to P3; the last one touches the border.
ROIS = np.float32([[50, 80, 150, 180], [40.5, 30, 290.3, 420.7], [10, 300, 30, 340], [250, 380, 300, 428]])
IMAGE_INDEX = np.int32([0, 1, 1, 0])


@pytest.mark.parametrize("training", [True, False, None])
@pytest.mark.parametrize(
    ("scale", "sampling_ratio", "geometry"),
    [(1.3, 2, "continuous"), (1.3, 0, "legacy"), (1, 1, "legacy"), (1, 2, "continuous")],
)
def test_rois_are_enlarged_about_their_centres_but_keep_their_level(scale, sampling_ratio, geometry, training):
    layer = RoIAlign(scale=scale, sampling_ratio=sampling_ratio, geometry=geometry)
    pooled = layer({**PYRAMID, "P6": tf.zeros([2, 5, 7, 3])}, ROIS, IMAGE_INDEX, training=training)
    enlarged = []
    for y1, x1, y2, x2 in np.float64(ROIS):
        y, x, height, width = (y1 + y2) / 2, (x1 + x2) / 2, (y2 - y1) * scale, (x2 - x1) * scale
        enlarged.append([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
    expected, _ = oracle.roi_align(
        PYRAMID,
        enlarged,
        IMAGE_INDEX,
        ["P2", "P4", "P2", "P2"],
        sampling_ratio=sampling_ratio,
        legacy=geometry == "legacy",
    )
    np.testing.assert_allclose(pooled, expected, atol=1e-4)


@pytest.mark.parametrize(("sampling_ratio", "geometry"), [(2, "continuous"), (0, "continuous"), (0, "legacy")])
def test_any_output_size_from_any_set_of_levels(sampling_ratio, geometry):
    layer = RoIAlign(
        scale=1.0, sampling_ratio=sampling_ratio, geometry=geometry, output_size=(3, 5), levels=["P3", "P5"]
    )
    rois = np.concatenate([ROIS, np.float32([[5, 10, 290, 425], [0, 0, 600, 500]])])
    image_index = np.int32([0, 1, 1, 0, 1, 0])
    pooled = layer({level: PYRAMID[level] for level in ("P5", "P3")}, rois, image_index)
    expected, _ = oracle.roi_align(
        PYRAMID,
        rois,
        image_index,
        ["P3", "P3", "P3", "P3", "P3", "P5"],
        sampling_ratio=sampling_ratio,
        legacy=geometry == "legacy",
        bins=(3, 5),
    )
    assert pooled.shape == (6, 3, 5, 3)
    np.testing.assert_allclose(pooled, expected, atol=1e-4)


def test_rois_stay_float32_under_mixed_precision():
    """A position of 420.7 pixels would be off by a tenth in half precision."""
    layer = RoIAlign(scale=1.0, sampling_ratio=2, geometry="continuous", dtype="mixed_float16")
    pyramid = {level: tf.cast(x, tf.float16) for level, x in PYRAMID.items()}
    expected, _ = oracle.roi_align(
        {level: x.numpy() for level, x in pyramid.items()},
        ROIS,
        IMAGE_INDEX,
        ["P2", "P4", "P2", "P2"],
        sampling_ratio=2,
        legacy=False,
    )
    pooled = layer(pyramid, ROIS, IMAGE_INDEX)
    assert pooled.dtype == tf.float16
    np.testing.assert_allclose(pooled, expected, atol=2e-3)


def test_no_rois_give_no_features():
    layer = RoIAlign(scale=1.3, sampling_ratio=2, geometry="continuous")
    assert layer(PYRAMID, tf.zeros([0, 4]), tf.zeros([0], tf.int32)).shape == (0, 7, 7, 3)

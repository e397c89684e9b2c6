"""RoIAlign by gathering, for graphs that other runtimes read: the numbers of `roi_align`."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from modeling.ops.test_roi_align import ALL_RATIOS, BOTH_GEOMETRIES, CHANNELS, MAP_SIZES, SPECIAL_ROIS

from dh_keras.modeling.ops.gather_roi_align import gather_roi_align
from dh_keras.modeling.ops.roi_align import roi_align, roi_levels


@pytest.fixture(scope="module")
def features():
    generator = np.random.default_rng(0)
    return {
        level: tf.constant(generator.normal(size=(2, height, width, CHANNELS)), tf.float32)
        for level, (height, width) in MAP_SIZES.items()
    }


def assert_equal_numbers(features, rois, *, level_index=None, **options):
    rois = np.float32(rois).reshape(-1, 4)
    image_index = np.arange(len(rois)) % 2
    level_index = roi_levels(rois) if level_index is None else np.int32(level_index)
    arguments = (features, tf.constant(rois), tf.constant(image_index), tf.constant(level_index))
    expected = roi_align(*arguments, **options)
    found = gather_roi_align(*arguments, **options)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    return found.numpy()


@BOTH_GEOMETRIES
@ALL_RATIOS
def test_random_and_special_rois_of_two_images_and_all_levels(features, sampling_ratio, geometry):
    rois = numpy_boxes.random_boxes(np.random.default_rng(2), 30, 511, 690)
    rois[:2] = [[10.2, 20.4, 480.1, 640.3], [-30.5, 100.1, 520.9, 660.2]]
    rois = np.concatenate([rois, *map(np.float32, SPECIAL_ROIS.values())])
    assert set(roi_levels(rois).numpy()) == {0, 1, 2, 3}
    pooled = assert_equal_numbers(features, rois, sampling_ratio=sampling_ratio, geometry=geometry)
    assert np.abs(pooled).max() > 0.5


@BOTH_GEOMETRIES
@pytest.mark.parametrize("sampling_ratio", [2, 0])
@pytest.mark.parametrize("count", [0, 1, 8, 9])
def test_any_number_of_rois_on_any_level(features, count, sampling_ratio, geometry):
    rois = numpy_boxes.random_boxes(np.random.default_rng(3), count, 200, 300)
    levels = [index % 4 for index in range(count)]
    pooled = assert_equal_numbers(features, rois, level_index=levels, sampling_ratio=sampling_ratio, geometry=geometry)
    assert pooled.shape == (count, 7, 7, CHANNELS)


@pytest.mark.parametrize("sampling_ratio", [3, 0])
def test_other_sizes_and_some_of_the_levels(features, sampling_ratio):
    rois = numpy_boxes.random_boxes(np.random.default_rng(4), 11, 511, 690)
    levels = roi_levels(rois, levels=("P3", "P5"))
    pooled = assert_equal_numbers(
        features, rois, level_index=levels, sampling_ratio=sampling_ratio, output_size=(5, 3), levels=("P3", "P5")
    )
    assert pooled.shape == (11, 5, 3, CHANNELS)


def test_half_precision_features_come_back_in_half_precision(features):
    half = {level: tf.cast(values, tf.bfloat16) for level, values in features.items()}
    rois = tf.constant([[10.3, 20.7, 90.1, 120.9]])
    pooled = gather_roi_align(half, rois, tf.constant([1]), roi_levels(rois), sampling_ratio=2)
    assert pooled.dtype == tf.bfloat16
    assert tf.reduce_any(pooled != 0)

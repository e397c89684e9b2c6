"""RoIAlign: values and gradients against the slow definition, and two examples worked by hand."""

import os
import subprocess
import sys

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from modeling.ops import roi_align_oracle as oracle

from dh_keras.modeling.ops.machine import traced_for
from dh_keras.modeling.ops.roi_align import pooling_order, roi_align, roi_levels

CHANNELS = 3
# An image of 511 x 690 pixels; no side divides by 64, and no level is square.
MAP_SIZES = {"P2": (128, 173), "P3": (64, 87), "P4": (32, 44), "P5": (16, 22)}
BOTH_GEOMETRIES = pytest.mark.parametrize("geometry", ["continuous", "legacy"])
ALL_RATIOS = pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])
TOLERANCE = 1e-4

SPECIAL_ROIS = {
    "zero size": [[100.3, 50.7, 100.3, 50.7], [0, 0, 0, 0], [20, 30, 20, 90], [20, 30, 90, 30], [511, 690, 511, 690]],
    "tiny": [[100.3, 50.7, 100.9, 51.1], [0, 0, 1, 1], [510, 689, 511, 690], [8, 8, 9.5, 40]],
    "huge": [[0, 0, 511, 690], [-300, -200, 900, 1100], [-5, -5, 520, 700.5]],
    "outside": [
        [-90, 10, -50, 60],
        [10, -95, 70, -40],
        [600, 10, 700, 90],
        [10, 800, 60, 900],
        [-500, -500, -200, -100],
    ],
    "inverted": [[120, 200, 80, 240], [120, 240, 150, 200], [300, 400, 100, 150]],
    "borders": [[0, 100.5, 60, 180], [100.5, 0, 160, 50], [450, 100, 511, 200.7], [100, 620, 190.3, 690]],
    "across": [[-20, 100, 40, 160], [100, -13, 130, 30], [480.5, 300, 540, 380], [200, 670, 260, 730], [-9, -9, 9, 9]],
    "long": [[10, 20, 18, 680], [5, 300, 500, 310], [0, 0, 511, 4]],
    "whole cells": [[28, 56, 84, 168], [0, 0, 28, 28], [2, 2, 30, 30]],
}


@pytest.fixture(scope="module")
def features():
    generator = np.random.default_rng(0)
    return {
        level: generator.normal(size=(2, height, width, CHANNELS)).astype(np.float32)
        for level, (height, width) in MAP_SIZES.items()
    }


def run(features, rois, image_index, levels, upstream, *, sampling_ratio, geometry):
    """Pooled features and the gradients of sum(pooled * upstream), in a graph that knows no sizes."""
    unknown = tf.TensorSpec([None, None, None, CHANNELS])

    @tf.function(
        input_signature=[
            {level: unknown for level in features},
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            unknown,
        ]
    )
    def traced(features, rois, image_index, levels, upstream):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, rois, image_index, levels, sampling_ratio=sampling_ratio, geometry=geometry)
            assert pooled.shape.as_list() == [None, 7, 7, CHANNELS]
            loss = tf.reduce_sum(pooled * upstream)
        return pooled, tape.gradient(loss, features)

    pooled, gradients = traced(features, rois, np.int32(image_index), np.int32(levels), upstream)
    return pooled.numpy(), {level: gradient.numpy() for level, gradient in gradients.items()}


def assert_equals_definition(features, rois, image_index, *, sampling_ratio, geometry, levels=None):
    rois = np.float32(rois).reshape(-1, 4)
    names = [oracle.level_of(roi) for roi in rois] if levels is None else levels
    if levels is None:
        levels = roi_levels(tf.constant(rois)).numpy()
        assert [oracle.LEVELS[level] for level in levels] == names
    else:
        levels = [oracle.LEVELS.index(level) for level in names]
    upstream = np.random.default_rng(1).normal(size=(len(rois), 7, 7, CHANNELS)).astype(np.float32)
    values, gradients = run(
        features, rois, image_index, levels, upstream, sampling_ratio=sampling_ratio, geometry=geometry
    )
    expected, expected_gradients = oracle.roi_align(
        features,
        rois,
        image_index,
        names,
        sampling_ratio=sampling_ratio,
        legacy=geometry == "legacy",
        upstream=upstream,
    )
    np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE)
    for level in oracle.LEVELS:
        np.testing.assert_allclose(gradients[level], expected_gradients[level], rtol=0, atol=TOLERANCE, err_msg=level)
    return values


@BOTH_GEOMETRIES
@ALL_RATIOS
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_random_rois_of_two_images_and_all_levels_equal_the_definition(features, sampling_ratio, geometry, target):
    generator = np.random.default_rng(2)
    rois = numpy_boxes.random_boxes(generator, 40, 511, 690)
    rois[:2] = [[10.2, 20.4, 480.1, 640.3], [-30.5, 100.1, 520.9, 660.2]]
    # Enlarged ones too: a head may ask for features beyond the border.
    rois[::3] += np.float32([-30, -40, 30, 40])
    image_index = generator.integers(0, 2, 40)
    assert {oracle.level_of(roi) for roi in rois} == set(oracle.LEVELS)
    with traced_for(target):
        assert_equals_definition(features, rois, image_index, sampling_ratio=sampling_ratio, geometry=geometry)


@BOTH_GEOMETRIES
@ALL_RATIOS
def test_special_rois_equal_the_definition(features, sampling_ratio, geometry):
    rois = np.concatenate([np.float32(rois) for rois in SPECIAL_ROIS.values()])
    image_index = np.arange(len(rois)) % 2
    assert_equals_definition(features, rois, image_index, sampling_ratio=sampling_ratio, geometry=geometry)


@BOTH_GEOMETRIES
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_the_level_is_the_callers_choice(features, sampling_ratio, geometry):
    generator = np.random.default_rng(3)
    rois = numpy_boxes.random_boxes(generator, 12, 200, 300)
    levels = [oracle.LEVELS[index % 4] for index in range(12)]
    assert_equals_definition(
        features, rois, np.arange(12) % 2, sampling_ratio=sampling_ratio, geometry=geometry, levels=levels
    )


@BOTH_GEOMETRIES
@ALL_RATIOS
def test_a_map_of_a_single_cell_equals_the_definition(sampling_ratio, geometry):
    generator = np.random.default_rng(4)
    features = {level: generator.normal(size=(1, 1, 1, CHANNELS)).astype(np.float32) for level in oracle.LEVELS}
    rois = [[0, 0, 4, 4], [-3, 1, 2, 9], [0, 0, 40, 50], [1, 1, 1, 1]]
    assert_equals_definition(features, rois, [0] * 4, sampling_ratio=sampling_ratio, geometry=geometry)


@BOTH_GEOMETRIES
@ALL_RATIOS
def test_no_rois_give_no_values_and_zero_gradients(features, sampling_ratio, geometry):
    values = assert_equals_definition(features, [], [], sampling_ratio=sampling_ratio, geometry=geometry)
    assert values.shape == (0, 7, 7, CHANNELS)


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_rois_wholly_outside_are_zero(features, sampling_ratio, geometry):
    rois = SPECIAL_ROIS["outside"]
    values = assert_equals_definition(features, rois, [0] * 5, sampling_ratio=sampling_ratio, geometry=geometry)
    assert not values.any()


def ramp(height, width, *, row_slope, column_slope):
    """A feature map whose value is linear, so that the average of a bin is the value at its centre."""
    return (row_slope * np.arange(height)[:, None] + column_slope * np.arange(width)[None, :]).astype(np.float32)


def pool_from_ramp(roi, **options):
    features = {level: np.zeros([1, *size, CHANNELS], np.float32) for level, size in MAP_SIZES.items()}
    features["P2"][0, ..., 0] = ramp(*MAP_SIZES["P2"], row_slope=10, column_slope=1)
    return roi_align(features, tf.constant([roi]), tf.constant([0]), tf.constant([0]), **options)[0, ..., 0]


@ALL_RATIOS
def test_continuous_pooling_of_a_ramp_worked_by_hand(sampling_ratio):
    # In cells of P2: rows 2 to 9, bins of 1; columns 3 to 17, bins of 2. The centre of cell 0 is at 0.5.
    rows, columns = np.arange(2, 9) + 0.5 - 0.5, np.arange(3, 17, 2) + 1 - 0.5
    expected = 10 * rows[:, None] + columns
    pooled = pool_from_ramp([8.0, 12.0, 36.0, 68.0], sampling_ratio=sampling_ratio)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


@ALL_RATIOS
def test_legacy_pooling_of_a_ramp_worked_by_hand(sampling_ratio):
    # Inclusive rows 8 to 64 are 2 to 16 in cells, bins of 2; columns 12 to 40 are 3 to 10, bins of 1; no half cell.
    rows, columns = np.arange(2, 16, 2) + 1, np.arange(3, 10) + 0.5
    expected = 10 * rows[:, None] + columns
    pooled = pool_from_ramp([8.0, 12.0, 65.0, 41.0], sampling_ratio=sampling_ratio, geometry="legacy")
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_a_legacy_roi_is_at_least_one_cell_high_and_wide():
    # From row 2 and column 3, bins of 1/7 cell.
    expected = 10 * (2 + (np.arange(7)[:, None] + 0.5) / 7) + 3 + (np.arange(7) + 0.5) / 7
    pooled = pool_from_ramp([8.0, 12.0, 10.0, 14.0], sampling_ratio=2, geometry="legacy")
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_samples_beside_the_map_count_as_its_border_within_a_cell_and_as_zero_beyond():
    # Columns -2.5 to 4.5 in cells, one sample per bin at -2, -1, 0, 1, 2, 3, 4.
    pooled = pool_from_ramp([4.0, -8.0, 32.0, 20.0], sampling_ratio=1)
    expected = [[0, 10 * row, 10 * row, 10 * row + 1, 10 * row + 2, 10 * row + 3, 10 * row + 4] for row in range(1, 8)]
    np.testing.assert_allclose(pooled, expected, atol=1e-4)


def test_levels_follow_the_size_of_the_roi():
    sides = [0.0, 1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0]
    squares = tf.constant([[10.0, 20.0, 10.0 + side, 20.0 + side] for side in sides])
    assert roi_levels(squares).numpy().tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    # 112 x 448 has the area of 224 x 224; an inverted box has none.
    others = tf.constant([[0.0, 0.0, 112.0, 448.0], [0.0, 0.0, 448.0, 112.0], [448.0, 448.0, 0.0, 0.0]])
    assert roi_levels(others).numpy().tolist() == [2, 2, 0]
    assert roi_levels(tf.zeros([0, 4])).shape == (0,)


def test_levels_of_random_rois_equal_the_formula():
    rois = numpy_boxes.random_boxes(np.random.default_rng(5), 300, 800, 1333)
    expected = [oracle.level_of(roi) for roi in rois]
    assert [oracle.LEVELS[level] for level in roi_levels(rois).numpy()] == expected


def test_neighbours_of_one_level_and_image_are_pooled_one_after_the_other():
    generator = np.random.default_rng(6)
    rois = numpy_boxes.random_boxes(generator, 800, 1333, 1333)
    image_index = generator.integers(0, 3, len(rois))
    order = pooling_order(tf.constant(rois), tf.constant(image_index)).numpy()
    middle = (rois[:, 0] + rois[:, 2]) / 2
    np.testing.assert_array_equal(order, np.lexsort((middle, image_index, roi_levels(rois).numpy())))
    assert pooling_order(tf.zeros([0, 4]), tf.zeros([0], tf.int64)).shape == (0,)


def test_an_roi_whose_level_is_missing_goes_to_the_next_finer_one_or_to_the_first():
    squares = tf.constant([[0.0, 0.0, side, side] for side in (50.0, 112.0, 224.0, 448.0, 896.0, 1792.0)])
    assert roi_levels(squares, levels=("P3", "P5", "P6")).numpy().tolist() == [0, 0, 0, 1, 2, 2]
    assert roi_levels(squares, levels=("P4",)).numpy().tolist() == [0] * 6


def test_no_gradient_flows_to_the_rois(features):
    rois = tf.Variable([[10.0, 20.0, 90.0, 120.0]])
    with tf.GradientTape() as tape:
        pooled = roi_align(features, rois, tf.constant([0]), roi_levels(rois), sampling_ratio=2)
        loss = tf.reduce_sum(pooled)
    assert tape.gradient(loss, rois) is None


def test_half_precision_features_are_pooled_in_full_precision_and_come_back_in_half(features):
    rois, index = tf.constant([[10.3, 20.7, 90.1, 120.9], [400.0, 600.0, 505.0, 689.0]]), tf.constant([0, 1])
    half = {level: tf.cast(x, tf.float16) for level, x in features.items()}
    pooled = roi_align(half, rois, index, roi_levels(rois), sampling_ratio=2)
    expected = roi_align(
        {level: tf.cast(x, tf.float32) for level, x in half.items()}, rois, index, roi_levels(rois), sampling_ratio=2
    )
    assert pooled.dtype == tf.float16
    np.testing.assert_array_equal(pooled, tf.cast(expected, tf.float16))


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_the_gradient_is_the_same_to_the_last_bit_each_time(features, sampling_ratio):
    """Many RoIs on the same cells, so that threads that added in any order would show."""
    generator = np.random.default_rng(5)
    corner = generator.uniform(100, 150, (256, 2))
    rois = np.concatenate([corner, corner + generator.uniform(100, 200, (256, 2))], axis=1).astype(np.float32)
    image_index, levels = np.zeros(256, np.int32), np.zeros(256, np.int32)
    upstream = generator.normal(size=(256, 7, 7, CHANNELS)).astype(np.float32)
    wide = {level: np.tile(values, 32) for level, values in features.items()}
    table = {level: tf.constant(values) for level, values in wide.items()}

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(table)
            pooled = roi_align(table, rois, image_index, levels, sampling_ratio=sampling_ratio)
        return tape.gradient(pooled, table["P2"], np.tile(upstream, 32)).numpy()

    first = gradient()
    assert np.abs(first).max() > 1
    for _ in range(4):
        np.testing.assert_array_equal(gradient(), first)


def test_the_gradient_is_the_same_in_several_threads():
    test = f"{__file__}::{test_the_gradient_is_the_same_to_the_last_bit_each_time.__name__}"
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "DH_KERAS_TEST_THREADS": "4"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout
    assert "2 passed" in run.stdout


def test_what_is_computed_grows_with_the_length_of_the_longest_roi_not_with_its_square():
    """One RoI of 500 cells in a bin among 20 small ones; the largest tensor of the graph has 7 samples a cell."""
    rois = [[0.0, 0.0, 14_000.0, 8.0]] + [[0.0, 0.0, 20.0, 20.0]] * 20
    with tf.Graph().as_default() as graph:
        features = {f"P{level}": tf.zeros([1, 3600 >> level - 2, 4, 1]) for level in range(2, 6)}
        index = tf.zeros([len(rois)], tf.int64)
        roi_align(features, tf.constant(rois), index, index, sampling_ratio=0)
        tensors = [output for op in graph.get_operations() for output in op.outputs if output.dtype.is_floating]
        with tf.compat.v1.Session() as session:
            largest = max(session.run([tf.size(tensor) for tensor in tensors]))
    assert largest <= (len(rois) + 1) * 7 * 501 * 7  # a blank one is behind them

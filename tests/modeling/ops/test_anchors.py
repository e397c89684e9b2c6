"""Anchors against tables worked by hand and the well-known anchors of Detectron."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.modeling.ops.anchors import anchors_inside, anchors_on_canvas, grid_anchors
from dh_keras.modeling.ops.cell_anchors import cell_anchors

RATIOS = (0.5, 1.0, 2.0)
STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32, "P6": 64}


def test_continuous_anchors_have_the_size_as_root_of_their_area_and_height_over_width_as_ratio():
    # Size 32: 22.627 x 45.255, 32 x 32 and 45.255 x 22.627, centred on the origin.
    expected = [
        [-11.3137085, -22.627417, 11.3137085, 22.627417],
        [-16, -16, 16, 16],
        [-22.627417, -11.3137085, 22.627417, 11.3137085],
    ]
    np.testing.assert_allclose(cell_anchors(32, RATIOS, 4, geometry="continuous"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "inclusive"),
    [
        (128, [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]]),
        (256, [[-176, -88, 191, 103], [-120, -120, 135, 135], [-80, -168, 95, 183]]),
        (512, [[-360, -184, 375, 199], [-248, -248, 263, 263], [-168, -344, 183, 359]]),
    ],
)
def test_legacy_anchors_of_stride_16_are_the_classic_table(size, inclusive):
    """The table that opens generate_anchors.py of Faster R-CNN: inclusive x1, y1, x2, y2 for ratios 0.5, 1, 2."""
    x1, y1, x2, y2 = np.transpose(inclusive)
    expected = np.stack([y1, x1, y2 + 1, x2 + 1], axis=1)
    np.testing.assert_array_equal(cell_anchors(size, RATIOS, 16, geometry="legacy"), expected)


@pytest.mark.parametrize(("stride", "size"), [(4, 32), (8, 64), (16, 128), (32, 256), (64, 512)])
def test_legacy_anchors_of_the_pyramid_equal_the_rounding_recipe(stride, size):
    """Round width, then height, of the stride-sized cell in inclusive pixels, then multiply by size / stride."""
    expected = []
    for ratio in RATIOS:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        centre, width, height = (stride - 1) / 2, width * size / stride, height * size / stride
        half_height, half_width = (height - 1) / 2, (width - 1) / 2
        expected.append([centre - half_height, centre - half_width, centre + half_height + 1, centre + half_width + 1])
    np.testing.assert_array_equal(cell_anchors(size, RATIOS, stride, geometry="legacy"), expected)


def test_anchors_of_a_grid_go_by_rows_then_columns_then_ratios():
    anchors = grid_anchors(tf.constant([2, 3]), size=8, ratios=(1.0, 4.0), stride=8).numpy()
    square, tall = np.array([-4, -4, 4, 4]), np.array([-8, -2, 8, 2])
    expected = []
    for row in (0, 8):
        for column in (0, 8, 16):
            shift = np.array([row, column, row, column])
            expected += [square + shift, tall + shift]
    np.testing.assert_allclose(anchors, expected, atol=1e-6)


def test_legacy_grid_is_the_legacy_cell_shifted_by_the_stride():
    anchors = grid_anchors(tf.constant([3, 2]), size=128, ratios=RATIOS, stride=16, geometry="legacy").numpy()
    cell = cell_anchors(128, RATIOS, 16, geometry="legacy")
    np.testing.assert_array_equal(anchors[:3], cell)
    np.testing.assert_array_equal(anchors[3:6], cell + np.array([0, 16, 0, 16]))
    np.testing.assert_array_equal(anchors[-3:], cell + np.array([32, 16, 32, 16]))


@pytest.mark.parametrize("grid", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_grid_has_no_anchors(grid):
    assert grid_anchors(tf.constant(grid), size=32, ratios=RATIOS, stride=4).shape == (0, 4)


def test_an_anchor_is_inside_when_no_side_crosses_the_border_of_its_image():
    anchors = tf.constant(
        [
            [0.0, 0.0, 30.0, 50.0],  # exactly the first image
            [-0.5, 0.0, 10.0, 10.0],  # above
            [0.0, -0.5, 10.0, 10.0],  # left
            [20.0, 20.0, 31.0, 30.0],  # below the first image only
            [20.0, 20.0, 30.0, 51.0],  # right of both images
            [5.0, 5.0, 6.0, 6.0],
        ]
    )
    inside = anchors_inside(anchors, tf.constant([[30, 50], [45, 40]]))
    expected = [[True, False, False, False, False, True], [False, False, False, True, False, True]]
    np.testing.assert_array_equal(inside, expected)


def test_no_anchors_are_inside_of_nothing():
    assert anchors_inside(tf.zeros([0, 4]), tf.constant([[30, 50], [45, 40]])).shape == (2, 0)


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
def test_an_image_has_the_anchors_of_the_cells_of_its_own_canvas(geometry):
    """The canvas of an image of 230 x 130 pixels is 256 x 160; that of one of 4096 x 32 is as large."""
    sizes = np.array([[230, 130], [4096, 32]])
    grids = {level: (5120 // stride, 320 // stride) for level, stride in STRIDES.items()}
    options = {"ratios": RATIOS, "geometry": geometry}
    for size in (40.3, 101.6, 256):
        anchors = {
            level: grid_anchors(tf.constant(grids[level]), size=size, stride=stride, **options)
            for level, stride in STRIDES.items()
        }
        found = anchors_on_canvas(anchors, tf.constant(sizes))
        for level, stride in STRIDES.items():
            rows, columns = (np.arange(count) * stride for count in grids[level])
            for image, (height, width) in enumerate([(256, 160), (4096, 32)]):
                expected = (rows[:, None] < height) & (columns < width)
                np.testing.assert_array_equal(found[level][image], np.repeat(expected.ravel(), len(RATIOS)))

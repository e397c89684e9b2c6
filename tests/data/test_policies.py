"""Operations that move pixels move the boxes with them; the same key gives the same picture."""

import numpy as np
import pytest
import tensorflow as tf
from official.vision.ops import augment as model_garden

from dh_keras.data.draws import Draws
from dh_keras.data.policies import autoaugment_v0, make_operation, randaugment, shift_inside, warp

CONSTANTS = {"cutout_const": 40.0, "translate_const": 20.0}
COLOURS = (
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
)
GEOMETRIC = ("Rotate_BBox", "ShearX_BBox", "ShearY_BBox", "TranslateX_BBox", "TranslateY_BBox")


def bright_image(height=121, width=187, box=(40, 61, 80, 118)):
    """Black, with a white rectangle; neither side is round and the rectangle is off the middle."""
    image = np.zeros((height, width, 3), np.uint8)
    y1, x1, y2, x2 = box
    image[y1:y2, x1:x2] = 255
    return tf.constant(image), tf.constant([box], tf.float32)


def bright_extent(image):
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 200)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def draws(number):
    return Draws(tf.constant([number, 1], tf.int64))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_moved_box_encloses_the_moved_rectangle_in_both_directions(name):
    image, boxes = bright_image()
    before, seen = bright_extent(image), set()
    for number in range(6):
        moved, new_boxes = make_operation(name, 10.0, **CONSTANTS)(image, boxes, draws(number))
        assert moved.shape == image.shape
        after = bright_extent(moved)
        np.testing.assert_allclose(new_boxes[0], after, atol=1.1)
        assert np.abs(after - before).max() >= 5
        seen.add(tuple(after))
    assert len(seen) == 2


@pytest.mark.parametrize("name", GEOMETRIC)
def test_at_level_zero_nothing_moves(name):
    image, boxes = bright_image()
    moved, new_boxes = make_operation(name, 0.0, **CONSTANTS)(image, boxes, draws(0))
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_allclose(new_boxes, boxes, atol=1e-4)


def test_the_gaps_are_grey_and_an_object_that_leaves_the_image_has_an_empty_box():
    image, boxes = bright_image()
    moved, new_boxes = warp(image, boxes, [[1.0, 0.0, 130.0], [0.0, 1.0, 0.0]])
    assert (moved.numpy()[:, -130:] == 128).all()
    assert (moved.numpy()[:, :-130] == 0).all()
    y1, x1, y2, x2 = new_boxes.numpy()[0]
    assert (y1, y2) == (40, 80)
    assert x1 == x2 == 0


def test_a_rotation_is_the_model_gardens_but_for_the_gaps():
    image, boxes = bright_image()
    seen = [make_operation("Rotate_BBox", 10.0, **CONSTANTS)(image, boxes, draws(n))[0].numpy() for n in range(6)]
    for degrees in (30.0, -30.0):
        expected = model_garden.wrapped_rotate(image, degrees, [128] * 3).numpy()
        close = [np.mean((picture > 200) == (expected > 200)) for picture in seen]
        assert max(close) > 0.999


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_the_model_gardens_and_boxes_stay(name):
    random = np.random.default_rng(3)
    image = tf.constant(random.integers(20, 220, (33, 47, 3)), tf.uint8)
    boxes = tf.constant([[1.0, 2.0, 30.5, 40.5]])
    changed, new_boxes = make_operation(name, 6.0, **CONSTANTS)(image, boxes, draws(0))
    expected = {
        "AutoContrast": model_garden.autocontrast,
        "Equalize": model_garden.equalize,
        "Invert": model_garden.invert,
        "Posterize": lambda x: model_garden.posterize(x, 2),
        "Solarize": lambda x: model_garden.solarize(x, 153),
        "SolarizeAdd": lambda x: model_garden.solarize_add(x, 66),
        "Color": lambda x: model_garden.color(x, 1.18),
        "Contrast": lambda x: model_garden.contrast(x, 1.18),
        "Brightness": lambda x: model_garden.brightness(x, 1.18),
        "Sharpness": lambda x: model_garden.sharpness(x, 1.18),
    }[name](image)
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(new_boxes, boxes)


def test_a_cut_out_square_is_grey_and_lies_around_a_pixel_of_the_image():
    image = tf.zeros([51, 77, 3], tf.uint8)
    places = set()
    for number in range(20):
        changed, _ = make_operation("Cutout", 5.0, cutout_const=20.0, translate_const=0.0)(
            image, tf.zeros([0, 4]), draws(number)
        )
        rows, columns = np.nonzero(changed.numpy()[..., 0] == 128)
        assert set(np.unique(changed)) == {0, 128}
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        assert 10 <= height <= 19
        assert 10 <= width <= 19
        places.add((rows.min(), columns.min()))
    assert len(places) > 15


@pytest.mark.parametrize("shift", [-100, -7, 0, 7, 100])
def test_the_inside_of_a_box_shifts_and_the_outside_stays(shift):
    random = np.random.default_rng(0)
    image = random.integers(0, 100, (41, 53, 3)).astype(np.uint8)
    expected = image.copy()
    expected[10:30, 5:50] = 128
    for row in range(10, 30):
        if 10 <= row + shift < 30:
            expected[row + shift, 5:50] = image[row, 5:50]
    shifted = shift_inside(tf.constant(image), tf.constant([10, 5, 30, 50]), tf.constant(shift))
    np.testing.assert_array_equal(shifted, expected)


def test_about_a_third_of_the_boxes_have_their_inside_shifted():
    image = np.zeros((40, 600, 3), np.uint8)
    image[10:20] = 255
    boxes = tf.constant([[0, 20 * i, 40, 20 * i + 20] for i in range(30)], tf.float32)
    operation = make_operation("TranslateY_Only_BBoxes", 2.0, probability=0.9, **CONSTANTS)
    shifted = [operation(tf.constant(image), boxes, draws(n))[0].numpy()[:, ::20] for n in range(20)]
    share = np.mean([(picture[:10] == 128).any((0, 2)) | (picture[-10:] == 128).any((0, 2)) for picture in shifted])
    assert 0.22 < share < 0.38


@pytest.mark.parametrize("policy", [randaugment, autoaugment_v0])
def test_a_policy_depends_on_the_key_alone_and_keeps_boxes_in_the_image(policy):
    image, boxes = bright_image(230, 301, (90, 120, 140, 200))
    run = tf.function(lambda key: policy(image, boxes, Draws(key)))
    pictures = []
    for number in range(40):
        changed, new_boxes = run(tf.constant([number, 5], tf.int64))
        again, boxes_again = run(tf.constant([number, 5], tf.int64))
        np.testing.assert_array_equal(changed, again)
        np.testing.assert_array_equal(new_boxes, boxes_again)
        assert changed.dtype == tf.uint8
        assert changed.shape == image.shape
        y1, x1, y2, x2 = new_boxes[0].numpy()
        assert 0 <= y1 <= y2 <= 230
        assert 0 <= x1 <= x2 <= 301
        pictures.append(changed.numpy().tobytes())
    # Some sub-policies change nothing in a black and white picture, so not all are different.
    assert len(set(pictures)) > 10


@pytest.mark.parametrize("policy", [randaugment, autoaugment_v0])
def test_a_policy_takes_an_image_without_boxes(policy):
    image = bright_image()[0]
    for number in range(12):
        changed, boxes = policy(image, tf.zeros([0, 4]), draws(number))
        assert boxes.shape == (0, 4)
        assert changed.shape == image.shape

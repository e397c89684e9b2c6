"""What fit, evaluate and predict take, and what they refuse by name, in arrays and in a graph."""

import re

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.errors import DataError
from dh_keras.modeling.user_data import as_arrays, image_batch, training_batch

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
BOXES = [[[4.0, 8.0, 30.0, 40.0], [10.0, 50.0, 60.0, 90.0]], [[0.0, 0.0, 64.0, 5.0]]]
CLASSES = [[2, 0], [1]]
PADDED = np.float32([BOXES[0], [BOXES[1][0], [-1.0] * 4]])
FORMS = {
    "padded with -1": {"boxes": PADDED, "classes": np.int64([[2, 0], [1, -1]])},
    "padded with boxes of zeros": {"boxes": np.maximum(PADDED, 0), "classes": np.float32([[2, 0], [1, 0]])},
    "ragged": {"boxes": tf.ragged.constant(BOXES, ragged_rank=1), "classes": tf.ragged.constant(CLASSES)},
    "ragged in every axis": {"boxes": tf.ragged.constant(BOXES), "classes": tf.ragged.constant(CLASSES)},
    "lists": {"boxes": [np.float64(boxes) for boxes in BOXES], "classes": CLASSES},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_ground_truth_becomes_the_same_batch(form):
    found = training_batch(as_arrays(IMAGES, FORMS[form]), num_classes=3)
    boxes = np.zeros([2, 2, 4], np.float32)
    boxes[0], boxes[1, 0] = BOXES[0], BOXES[1][0]
    expected = {
        "images": IMAGES,
        "image_sizes": np.int32([[64, 96]] * 2),
        "image_ids": np.int64([0, 1]),
        "gt_boxes": boxes,
        "gt_classes": np.int32([[2, 0], [1, 0]]),
        "gt_valid": np.array([[True, True], [True, False]]),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert tf.convert_to_tensor(found[name]).dtype == values.dtype, name


def test_a_whole_batch_is_taken_as_it_is(batch):
    assert training_batch(batch, num_classes=3) is batch
    assert training_batch((batch, None, None), num_classes=3) is batch


def test_what_a_dict_leaves_out_is_filled_in_and_what_it_says_is_kept(batch):
    given = {name: batch[name] for name in ("images", "gt_boxes", "gt_classes", "image_ids")}
    found = training_batch(given, num_classes=3)
    for name in ("gt_boxes", "gt_valid", "image_ids"):
        np.testing.assert_array_equal(found[name], batch[name], err_msg=name)
    assert found["image_sizes"].numpy().tolist() == [[96, 128]] * 2
    given |= {"gt_valid": tf.constant([[True, False, False]] * 2), "image_sizes": batch["image_sizes"]}
    found = training_batch(given, num_classes=3)
    assert found["gt_valid"] is given["gt_valid"]
    assert found["image_sizes"] is batch["image_sizes"]


def test_images_of_any_size_are_padded_to_what_the_network_halves():
    found = image_batch(IMAGES[:, :50, :70].astype(np.float32))
    assert found["image_sizes"].numpy().tolist() == [[50, 70]] * 2
    assert found["images"].shape == (2, 64, 96, 3)
    np.testing.assert_array_equal(found["images"][:, :50, :70], IMAGES[:, :50, :70])
    assert not np.any(found["images"][:, 50:])
    assert not np.any(found["images"][:, :, 70:])


def changed(**truth):
    return IMAGES, {**FORMS["padded with -1"], **truth}


WRONG = {
    "images: expected numbers in 0..255, got 0..1; multiply them by 255": (
        (IMAGES / 255).astype(np.float32),
        changed()[1],
    ),
    "boxes: expected [y1, x1, y2, x2] in pixels of the images, got 0..1; multiply": changed(boxes=PADDED / 96),
    "classes: expected 0..2, or -1 for padding, got larger ones": changed(classes=np.int32([[3, 0], [1, -1]])),
}


@pytest.mark.parametrize("message", WRONG)
def test_values_that_cannot_be_right_are_refused_in_one_line_of_arrays_and_of_datasets(message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}") as error:
        training_batch(WRONG[message], num_classes=3)
    assert "\n" not in str(error.value)
    batches = tf.data.Dataset.from_tensor_slices(WRONG[message]).batch(2)
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        list(batches.map(lambda *data: training_batch(data, num_classes=3)))


def test_dark_images_and_images_without_boxes_are_not_refused():
    black = np.zeros([2, 64, 96, 3], np.float32)
    nothing = {"boxes": np.full([2, 1, 4], -1.0), "classes": np.full([2, 1], -1)}
    assert not np.any(training_batch((black, nothing), num_classes=3)["gt_valid"])
    no_rows = {"boxes": np.zeros([2, 0, 4]), "classes": np.zeros([2, 0])}
    assert training_batch((black, no_rows), num_classes=3)["gt_valid"].shape == (2, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES[0], None), r"^images: expected the shape \[B, H, W, 3\], got \(64, 96, 3\)"),
        (({"image": IMAGES}, None), "^images: expected an array, or a dict with the key images, got the keys image$"),
        ((IMAGES, None), "^y: expected a dict with boxes and classes, or gt_boxes and gt_classes in x, got the keys"),
        ((IMAGES, PADDED), "^y: expected a dict with boxes and classes, .* got ndarray$"),
        ((IMAGES, {"boxes": PADDED, "labels": CLASSES}), "^y: expected a dict with .* got the keys boxes, labels$"),
        (changed(boxes=PADDED[..., :3]), r"^y: expected boxes \[B, G, 4\] and .* shapes \(2, 2, 3\) and \(2, 2\)$"),
    ],
)
def test_data_of_another_form_is_refused_by_name(data, message):
    with pytest.raises(DataError, match=message):
        training_batch(data, num_classes=3)

"""A pipeline of Albumentations from a file: boxes follow, draws depend on the seed, and what is wrong is one line."""

import dataclasses
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data.augment_file import fault_of, load_pipeline
from dh_keras.data.canvases import canvases
from dh_keras.data.pipeline import train_dataset
from dh_keras.errors import ConfigError, DataError

BASE = DataConfig(min_size=120, max_size=200, augmentation="none")
BOXES = np.array([[30, 20, 71, 65], [0, 0, 0, 0], [90, 140, 100, 160]], np.float32)


@pytest.fixture
def save(tmp_path):
    """Return a function that saves operations, and limits of boxes, as a pipeline; it returns the path."""

    def write(*operations, form="yaml", **limits):
        boxes = A.BboxParams("yolo", label_fields=["names"], **limits) if limits else None
        path = tmp_path / f"pipeline.{form}"
        A.save(A.Compose(list(operations), bbox_params=boxes), path, data_format=form)
        return str(path)

    return write


def picture(height=100, width=160):
    """White in the first of the boxes, black elsewhere."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[30:71, 20:65] = 255
    return pixels


def bright_extent(image):
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_boxes_follow_and_those_out_of_view_are_empty(save, form):
    pipeline = load_pipeline(save(A.Crop(10, 20, 90, 80), A.HorizontalFlip(p=1), form=form))
    image, boxes = pipeline(picture(), BOXES, 1)
    assert image.shape == (60, 80, 3)
    # Columns 20..65 become 10..55, and mirrored in 80 columns 25..70; the others are outside or were empty.
    np.testing.assert_allclose(boxes, [[10, 25, 51, 70], [0, 0, 0, 0], [0, 0, 0, 0]], atol=1e-4)
    np.testing.assert_array_equal(bright_extent(image), [10, 25, 51, 70])
    assert pipeline(picture(), BOXES[:0], 1)[1].shape == (0, 4)


def test_limits_of_the_pipeline_decide_what_is_left_of_a_box(save):
    operation = A.Crop(0, 0, 160, 50)  # leaves 20 of 41 rows
    assert load_pipeline(save(operation, min_visibility=0.4))(picture(), BOXES, 0)[1][0].any()
    assert not load_pipeline(save(operation, min_visibility=0.6))(picture(), BOXES, 0)[1][0].any()


def test_draws_depend_on_the_seed_alone_in_any_thread_and_operations_do_not_draw_alike(save):
    pipeline = load_pipeline(save(A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), A.GaussNoise(p=1)))
    seeds = [*range(24)] * 2
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda seed: pipeline(picture(), BOXES, seed), seeds))
    for seed, (image, boxes) in zip(seeds, found, strict=True):
        expected_image, expected_boxes = load_pipeline(pipeline.path)(picture(), BOXES, seed)
        np.testing.assert_array_equal(image, expected_image)
        np.testing.assert_array_equal(boxes, expected_boxes)
    assert len({tuple(boxes[0, :2]) for _, boxes in found}) == 4
    assert len({image.tobytes() for image, _ in found}) == 24


def test_training_images_that_turn_or_grow_are_shrunk_into_their_canvas_with_their_boxes(coco, make, save):
    coco.image(100, 160, data=make.encode(picture(), "PNG"))
    coco.box(1, [20, 30, 45, 41])
    config = dataclasses.replace(BASE, augment_file=save(A.RandomRotate90(p=1), A.RandomScale((0, 1), p=1)))
    sizes = set()
    for batch in train_dataset(coco.load(), config, plan=np.zeros((16, 1), int), seed=3).as_numpy_iterator():
        height, width = batch["image_sizes"][0]
        assert batch["images"].shape[1:3] in canvases(120, 200)
        assert height <= batch["images"].shape[1]
        assert width <= batch["images"].shape[2]
        np.testing.assert_allclose(batch["gt_boxes"][0, 0], bright_extent(batch["images"][0]), atol=2.0)
        sizes.add((int(height), int(width)))
    assert (128, 80) in sizes  # upright in a canvas of 128 rows
    assert any(width > height for height, width in sizes)


def test_a_pipeline_that_fails_is_named_with_its_reason(coco, make, save):
    coco.image(100, 160, data=make.encode(picture(), "PNG"))
    coco.box(1, [20, 30, 45, 41])
    for operation, reason in (
        (A.RandomCrop(500, 500), "CropSizeError: .*"),
        (A.ToFloat(), r"ValueError: gives an image float32\[\d+, \d+, 3\], expected uint8\[H, W, 3\]"),
    ):
        path = save(operation)
        data = train_dataset(
            coco.load(), dataclasses.replace(BASE, augment_file=path), plan=np.zeros((1, 1), int), seed=3
        )
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            list(data)
        said = fault_of(error.value)
        assert "\n" not in said
        assert re.fullmatch(rf"data\.augment_file {re.escape(path)}: {reason}", said)


@pytest.mark.parametrize("text", ["", "[1]", "transform: {}", "{", "transform: {__class_fullname__: Nonsense}"])
def test_a_file_that_is_something_else_is_one_line(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(
        DataError, match=rf"^data\.augment_file {path}: is not what albumentations\.save writes: .*"
    ) as e:
        load_pipeline(str(path))
    assert "\n" not in str(e.value)


def test_a_missing_file_and_a_missing_library_are_one_line(save, monkeypatch):
    path = save(A.HorizontalFlip())
    with pytest.raises(DataError, match=r"^data\.augment_file nowhere\.yaml: cannot be read: "):
        load_pipeline("nowhere.yaml")
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(
        ConfigError, match=r"^key data\.augment_file: needs Albumentations; install it with pip install "
    ):
        load_pipeline(path)

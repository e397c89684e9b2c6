"""Scale, crop and flip keep boxes on their objects; a draw depends on the seed, the step and the position only."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.schema import AUGMENTATIONS, DataConfig
from dh_keras.data.augment import place, size_limits
from dh_keras.data.balance import epoch_images, repeat_factors
from dh_keras.data.canvases import canvases
from dh_keras.data.draws import Draws
from dh_keras.data.pipeline import plan_batches, steps_per_epoch, train_dataset

BASE = DataConfig(min_size=120, max_size=200, multi_scale_sizes=[80, 100, 120])
CONFIGS = {
    "none": dataclasses.replace(BASE, augmentation="none"),
    "flip": BASE,
    "multi_scale": dataclasses.replace(BASE, augmentation="multi_scale"),
    "jitter": dataclasses.replace(BASE, scale_jitter=[0.3, 2.5]),
    "jitter_and_multi_scale": dataclasses.replace(BASE, augmentation="multi_scale", scale_jitter=[0.5, 1.5]),
    "randaugment": dataclasses.replace(BASE, augmentation="randaugment"),
    "autoaugment_v0": dataclasses.replace(BASE, augmentation="autoaugment_v0"),
    "mosaic": dataclasses.replace(BASE, mosaic=0.6),
    "mosaic_and_augment_file": dataclasses.replace(
        BASE, mosaic=0.6, augment_file=str(Path(__file__).with_name("pipeline.yaml"))
    ),
}


@pytest.fixture
def folder(coco, make):
    """Black pictures with a white rectangle that is annotated: landscape, portrait, square, of odd sizes."""
    for number, (height, width) in enumerate([(97, 151), (151, 97), (101, 101)], start=1):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[30:71, 21:66] = 255
        coco.image(height, width, data=make.encode(pixels, "PNG"))
        coco.box(number, [21, 30, 45, 41])
    return coco


def bright_extent(image):
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def batches_of(dataset, config, steps, seed=2, **options):
    plan = np.arange(steps)[:, None] % len(dataset)
    return [
        {name: value.numpy() for name, value in batch.items()}
        for batch in train_dataset(dataset, config, plan=plan, seed=seed, **options)
    ]


@pytest.mark.parametrize("name", ["none", "flip", "multi_scale", "jitter", "jitter_and_multi_scale"])
def test_boxes_bound_the_bright_pixels_whatever_the_size_and_the_place(folder, name):
    sizes = set()
    for batch in batches_of(folder.load(), CONFIGS[name], 60):
        height, width = batch["image_sizes"][0]
        image = batch["images"][0]
        assert image.shape[:2] in canvases(120, 200)
        assert image[height:].sum() == image[:, width:].sum() == 0
        sizes.add((height, width))
        if not batch["gt_valid"][0, 0]:
            assert name.startswith("jitter")
            assert (image > 127).sum() == 0
            continue
        np.testing.assert_allclose(batch["gt_boxes"][0, 0], bright_extent(image), atol=2.0)
    assert len(sizes) == {"none": 3, "flip": 3, "multi_scale": 9}.get(name, len(sizes))
    assert len(sizes) > 20 or not name.startswith("jitter")


def test_only_none_never_flips(folder):
    dataset = folder.load()
    plain = batches_of(dataset, dataclasses.replace(BASE, flip_probability=0.0), 30)
    for batch, expected in zip(batches_of(dataset, CONFIGS["none"], 30), plain, strict=True):
        np.testing.assert_array_equal(batch["images"], expected["images"])
    flipped = [
        not np.array_equal(batch["images"], expected["images"])
        for batch, expected in zip(batches_of(dataset, CONFIGS["flip"], 30), plain, strict=True)
    ]
    assert 5 <= sum(flipped) <= 25


def test_jitter_draws_the_whole_range_evenly(folder):
    sizes = [batch["image_sizes"][0] for batch in batches_of(folder.load(), CONFIGS["jitter"], 120)[::3]]
    heights = np.array([height for height, _ in sizes])
    # 97x151 becomes 120x187; its canvas is 128x224, so factors above 128 / 120 are cut.
    assert heights.max() == 128
    assert heights.min() < 0.6 * 120
    cut = np.mean(heights == 128)
    expected = (2.5 - 128 / 120) / (2.5 - 0.3)
    assert abs(cut - expected) < 4 * np.sqrt(expected * (1 - expected) / len(heights))


# A mosaic is in another of them too, and the drawing of AutoAugment is that of RandAugment.
RARELY = ("mosaic", "autoaugment_v0")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if one in RARELY else []) for one in CONFIGS]
)
def test_the_stream_is_the_same_again_from_the_middle_and_for_each_worker(folder, name):
    dataset, config = folder.load(), CONFIGS[name]
    plan = np.array([[0, 0], [1, 1], [2, 2], [0, 0], [1, 1]])
    whole = list(train_dataset(dataset, config, plan=plan, seed=4).as_numpy_iterator())
    rest = list(train_dataset(dataset, config, plan=plan, seed=4, start_step=2).as_numpy_iterator())
    second = list(train_dataset(dataset, config, plan=plan, seed=4, shard=(1, 2)).as_numpy_iterator())
    for expected, batch in zip(whole[2:], rest, strict=True):
        for key, value in expected.items():
            np.testing.assert_array_equal(batch[key], value)
    for expected, batch in zip(whole, second, strict=True):
        np.testing.assert_array_equal(batch["images"][0], expected["images"][1])
        rows = batch["gt_boxes"].shape[1]  # as many as the image with the most boxes of a batch has
        np.testing.assert_array_equal(batch["gt_boxes"][0], expected["gt_boxes"][1][:rows])
        assert not expected["gt_valid"][1][rows:].any()
    if name != "none":
        other = list(train_dataset(dataset, config, plan=np.repeat(plan, 4, axis=0), seed=5).as_numpy_iterator())
        twins = [np.array_equal(batch["images"][0], batch["images"][1]) for batch in other]
        assert not all(twins)


def test_every_augmentation_has_a_test():
    assert {config.augmentation for config in CONFIGS.values()} == set(AUGMENTATIONS)


def test_canvases_hold_the_largest_short_side_of_multi_scale_training():
    assert size_limits(CONFIGS["flip"]) == {"min_size": 120, "max_size": 200}
    config = dataclasses.replace(CONFIGS["multi_scale"], multi_scale_sizes=[90, 150, 130])
    assert size_limits(config) == {"min_size": 150, "max_size": 200}


def test_a_crop_window_lies_anywhere_and_boxes_are_clipped_to_it():
    config = dataclasses.replace(BASE, augmentation="none", scale_jitter=[2.0, 2.0])
    columns = np.arange(200, dtype=np.uint8)
    image = tf.constant(np.broadcast_to(columns[None, :, None], (120, 200, 3)))
    starts = []
    for number in range(40):
        key = tf.constant([number, 0], tf.int64)
        whole = tf.constant([[0.0, 0.0, 120.0, 200.0]])
        cropped, boxes = place(image, whole, tf.constant([128, 224]), key, Draws(key), config)
        assert cropped.shape == (128, 224, 3)
        assert boxes.numpy().tolist() == [[0.0, 0.0, 128.0, 224.0]]
        starts.append(int(cropped[0, 0, 0]) * 2)
    # 400 columns leave 176 places for the first of 224.
    assert min(starts) < 40
    assert max(starts) > 130
    assert max(starts) <= 178


def test_draws_differ_from_place_to_place_and_keep_to_their_range():
    draws = Draws(tf.constant([1, 2], tf.int64))
    values = [float(draws.uniform(2.0, 4.0)) for _ in range(200)]
    assert len(set(values)) == 200
    assert 2.0 <= min(values) < 2.1
    assert 3.9 < max(values) <= 4.0
    assert {int(draws.integer(3)) for _ in range(40)} == {0, 1, 2}
    assert {float(draws.sign()) for _ in range(40)} == {-1.0, 1.0}
    again = Draws(tf.constant([1, 2], tf.int64))
    assert [float(again.uniform(2.0, 4.0)) for _ in range(200)] == values


# Repeating images of rare classes.


@pytest.fixture
def unbalanced(coco, make):
    """Sixteen images with a dog, of which one has a cat as well, and one image without a box."""
    data = make.encode(make.pixels(32, 48), "PNG")
    for number in range(1, 18):
        coco.image(32, 48, data=data)
        if number < 17:
            coco.box(number, [1, 1, 9, 9], category_id=1)
    coco.box(3, [5, 5, 9, 9], category_id=3)
    return coco


def test_repeat_factors_are_those_of_lvis(unbalanced):
    dataset = unbalanced.load()
    indices = np.arange(17)
    factors = repeat_factors(dataset, indices, 0.5)
    expected = np.ones(17)
    expected[2] = np.sqrt(0.5 / (1 / 17))
    np.testing.assert_allclose(factors, expected)
    assert repeat_factors(dataset, indices, 0.0).tolist() == [1.0] * 17
    # Without the empty image there are sixteen to count.
    assert repeat_factors(dataset, indices[:16], 0.5)[2] == pytest.approx(np.sqrt(8))


def test_a_rare_class_is_shown_as_often_as_its_factor_says_and_all_else_once(unbalanced):
    dataset = unbalanced.load()
    images = epoch_images(dataset, dataclasses.replace(BASE, repeat_threshold=0.5, filter_empty=True))
    assert images.indices.tolist() == list(range(16))
    assert images.repeats[2] == pytest.approx(np.sqrt(8))
    steps = steps_per_epoch(images.canvas_index, 1, images.repeats)
    assert steps == 18  # 15 + sqrt(8) = 17.83
    plan = plan_batches(images.canvas_index, batch_size=1, epochs=300, seed=1, repeats=images.repeats)
    counts = np.array([np.bincount(epoch.ravel(), minlength=16) for epoch in plan.reshape(300, steps, 1)])
    assert counts.min() == 1
    # An epoch that is one short is filled with any image: 0.17 of 18 places.
    assert counts[:, 2].mean() == pytest.approx(np.sqrt(8), abs=0.1)
    assert set(counts[:, 2]) <= {2, 3, 4}
    others = np.delete(counts, 2, axis=1)
    assert others.mean() == pytest.approx(1.0, abs=0.02)
    assert np.array_equal(
        plan[: 5 * steps],
        plan_batches(images.canvas_index, batch_size=1, epochs=5, seed=1, repeats=images.repeats),
    )


def test_factors_of_one_repeat_nothing_and_no_threshold_gives_no_factors(unbalanced):
    images = epoch_images(unbalanced.load(), BASE)
    assert images.repeats is None
    assert images.indices.tolist() == list(range(17))
    ones = np.ones(17)
    assert steps_per_epoch(images.canvas_index, 4, ones) == steps_per_epoch(images.canvas_index, 4) == 5
    for epoch in plan_batches(images.canvas_index, batch_size=4, epochs=3, seed=7, repeats=ones).reshape(3, 20):
        assert np.sort(np.bincount(epoch)).tolist() == [1] * 14 + [2] * 3

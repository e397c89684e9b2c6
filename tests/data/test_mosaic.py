"""A mosaic shows windows of four images with their boxes and classes, as often as the config says."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data.draws import Draws
from dh_keras.data.mosaic import make_mosaic
from dh_keras.data.pipeline import train_dataset

BASE = DataConfig(min_size=120, max_size=200)
CANVAS = (128, 224)
# One color for each image, none of them grey.
COLORS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], np.uint8)


def maker(images, boxes, data, others):
    """A function that makes the mosaic of a number as arrays; the class of every box is the index of its image."""

    def read(index):
        rows = tf.gather(tf.constant(boxes, tf.float32), index)
        return tf.gather(tf.constant(images), index), rows, tf.fill(tf.shape(rows)[:1], index)

    @tf.function
    def make(number):
        draws = Draws(tf.stack([number, 7]))
        return make_mosaic(read, tf.constant(0), tf.constant(others), tf.constant(CANVAS), draws, data)

    return lambda number: [value.numpy() for value in make(tf.constant(number, tf.int64))]


@pytest.mark.parametrize("jitter", [None, [0.45, 0.9]])
def test_every_box_has_the_color_of_its_image_and_gaps_are_grey(jitter):
    images = np.broadcast_to(COLORS[:, None, None], (4, 100, 160, 3))
    boxes = np.broadcast_to([0, 0, 100, 160], (4, 1, 4))
    data = dataclasses.replace(BASE, scale_jitter=jitter)
    mosaic_of = maker(images, boxes, data, [1, 2, 3])
    seen, gaps, heights = set(), 0, []
    for number in range(25):
        image, found, classes = mosaic_of(number)
        assert image.shape == (*CANVAS, 3)
        assert classes[0] == 0
        left = np.ones(CANVAS, bool)
        for (y1, x1, y2, x2), index in zip(np.round(found).astype(int), classes, strict=True):
            assert (image[y1:y2, x1:x2] == COLORS[index]).all()
            left[y1:y2, x1:x2] = False
            heights.append(y2 - y1)
        if (found[:, 2] > found[:, 0]).all():  # else a window shows so little of an image that it is no target
            assert (image[left] == 128).all()
            gaps += int(left.any())
            y2, x2 = found[0, 2:]  # where the first image ends the four meet
            assert 0.25 * 128 - 1 <= y2 <= 0.75 * 128 + 1
            assert 0.25 * 224 - 1 <= x2 <= 0.75 * 224 + 1
        seen |= set(classes.tolist())
    assert seen == {0, 1, 2, 3}
    assert gaps
    assert len(set(heights)) > 20


def test_a_box_of_which_less_than_a_quarter_is_seen_is_no_target():
    image = np.zeros((1, 120, 192, 3), np.uint8)
    image[0, 40:80, 60:140] = 255
    data = dataclasses.replace(BASE, augmentation="none", scale_jitter=[1.0, 1.0])
    mosaic_of = maker(image, [[[40, 60, 80, 140]]], data, [0])
    kept, dropped = [], 0
    for number in range(20):
        pixels, boxes, _ = mosaic_of(number)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        bright = float((pixels[..., 0] > 200).sum())
        assert areas.sum() <= bright + 1
        dropped += bright > areas.sum() + 1
        kept += (areas[areas > 0] / (40 * 80)).tolist()
    assert min(kept) >= 0.25
    assert min(kept) < 0.5
    assert dropped > 2


def test_a_mosaic_comes_as_often_as_its_chance_and_fills_the_canvas(coco, make):
    for _ in range(2):
        coco.image(97, 151, data=make.encode(np.full((97, 151, 3), 255, np.uint8), "PNG"))
    coco.box(1, [21, 30, 45, 41])
    coco.box(2, [1, 3, 45, 41])
    config = dataclasses.replace(BASE, mosaic=0.5)
    plan = np.arange(60)[:, None] % 2
    sizes = [tuple(batch["image_sizes"][0].numpy()) for batch in train_dataset(coco.load(), config, plan=plan, seed=1)]
    assert set(sizes) == {(128, 224), (120, 187)}
    assert 18 <= sizes.count((128, 224)) <= 42

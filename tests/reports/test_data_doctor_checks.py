"""The doctor's measurements against independent ones: the library's own anchors, other shifts, made-up classes."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from dh_keras.config.load import load_config
from dh_keras.modeling.constants import LEVEL_STRIDES
from dh_keras.modeling.ops.anchors import anchors_inside, grid_anchors
from dh_keras.modeling.ops.boxes import pairwise_iou
from dh_keras.modeling.ops.matching import match_boxes
from dh_keras.reports.data_doctor.anchor_coverage import match_to_anchors, resize_to_config
from dh_keras.reports.data_doctor.duplicates import THUMBNAIL, near_duplicates
from dh_keras.reports.data_doctor.file_scan import read_upright

SIZE = np.array([96, 128])


def random_boxes(count, seed):
    random = np.random.default_rng(seed)
    start = random.uniform(0, 0.9 * SIZE, (count, 2))
    end = np.minimum(start + random.uniform(2, 70, (count, 2)), SIZE)
    boxes = np.concatenate([start, end], axis=1).astype(np.float32)
    return np.concatenate([boxes, boxes[:3] + 0.5, [[16, 16, 48, 48], [0, 0, 96, 128]]]).astype(np.float32)


def match_all_anchors(boxes, rpn, geometry, canvas):
    """Best IoU and learned boxes, with every anchor and the functions of training."""
    levels = zip(LEVEL_STRIDES.values(), rpn.anchor_sizes, strict=True)
    options = {"ratios": rpn.anchor_ratios, "geometry": geometry}
    grids = [([-(-side // stride) for side in canvas], stride, size) for stride, size in levels]
    anchors = tf.concat([grid_anchors(tf.constant(g), size=size, stride=s, **options) for g, s, size in grids], 0)
    iou = pairwise_iou(anchors, tf.constant(boxes))
    matches = match_boxes(
        iou,
        tf.ones(len(boxes), tf.bool),
        foreground_iou=rpn.positive_iou,
        background_iou=rpn.negative_iou,
        low_quality_iou=rpn.low_quality_iou,
        low_quality_own_box=rpn.low_quality_own_box,
    ).numpy()
    if rpn.ignore_border:
        matches = matches[anchors_inside(anchors, tf.constant(SIZE[None]))[0].numpy()]
    return iou.numpy().max(axis=0), np.isin(np.arange(len(boxes)), matches)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.rpn.low_quality_iou=0.3"],
        ["model.rpn.ignore_border=true", "model.geometry=legacy"],
        ["model.rpn.low_quality_own_box=true", "model.rpn.positive_iou=0.5", "model.rpn.anchor_ratios=[0.3,1]"],
    ],
)
def test_anchors_are_matched_as_in_training(overrides):
    sizes = ["model.rpn.anchor_sizes=[16,32,64,128,256]", "data.min_size=96", "data.max_size=128"]
    config = load_config(overrides=[*sizes, *overrides])
    rpn, geometry = config.model.rpn, config.model.geometry
    canvas = (96, 128)
    unlearned = 0
    for seed in range(12):
        boxes = random_boxes(2 + 2 * seed, seed)
        best, learned = match_to_anchors(boxes, image_size=SIZE, canvas=canvas, rpn=rpn, geometry=geometry)
        expected_best, expected_learned = match_all_anchors(boxes, rpn, geometry, canvas)
        np.testing.assert_allclose(best, expected_best, rtol=1e-6)
        np.testing.assert_array_equal(learned, expected_learned)
        unlearned += np.sum(~learned)
    assert unlearned > 5


def test_images_are_resized_and_padded_as_in_training():
    config = load_config(overrides=["data.min_size=100", "data.max_size=150"])
    sizes, canvas = resize_to_config(np.array([[480, 640], [300, 100], [50, 50]]), config)
    assert sizes.tolist() == [[100, 133], [150, 50], [100, 100]]
    assert canvas == [(128, 160), (160, 128), (128, 128)]


def thumbnails_of(*scenes):
    return np.stack(scenes).astype(np.uint8)


def soft_scene(seed):
    """Return float[64, 64] of soft blobs."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(64, 64)))
    y, x = np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None]
    scene = np.fft.irfft2(spectrum * np.exp(-(y**2 + x**2) * 200), s=(64, 64))
    return 128 + 40 * (scene - scene.mean()) / scene.std()


def test_shifted_and_brighter_copies_are_found_and_nothing_else():
    scenes = [soft_scene(seed).clip(0, 255) for seed in range(40)]
    side = slice(8, 8 + THUMBNAIL)
    plain = [scene[side, side] for scene in scenes]
    shifted = scenes[3][14 : 14 + THUMBNAIL, 2 : 2 + THUMBNAIL]
    brighter = (plain[7] * 0.8 + 30).clip(0, 255)
    flat = [np.full((THUMBNAIL, THUMBNAIL), 90.0)] * 2
    thumbnails = thumbnails_of(*plain, shifted, brighter, *flat)
    pairs = near_duplicates(thumbnails, np.zeros(len(thumbnails)))
    assert [(i, j) for i, j, _ in pairs] == [(3, 40), (7, 41)]
    assert min(correlation for *_, correlation in pairs) > 0.95


def test_a_video_is_compared_with_few_frames_of_each_set():
    random = np.random.default_rng(0)
    scene = soft_scene(1)[:THUMBNAIL, :THUMBNAIL]
    frames = [(scene + random.normal(0, 2, scene.shape)).clip(0, 255) for _ in range(30)]
    sets = np.array(["train"] * 20 + ["val"] * 10)
    pairs = near_duplicates(thumbnails_of(*frames), sets)
    assert len(pairs) <= 30 * 3 * 2
    assert {i for pair in pairs for i in pair[:2]} == set(range(30))
    assert {j for i, j, _ in pairs if i < 20 <= j} == set(range(20, 30))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_does(tmp_path, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(soft_scene(2)[:40].astype(np.uint8)).save(tmp_path / "a.jpg", exif=tags)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")).convert("RGB")
    np.testing.assert_array_equal(read_upright(str(tmp_path / "a.jpg"), orientation), np.asarray(expected))


def test_one_image_is_no_pair_and_no_image_neither():
    for count in (0, 1):
        assert near_duplicates(np.full((count, THUMBNAIL, THUMBNAIL), 7, np.uint8), np.zeros(count)) == []

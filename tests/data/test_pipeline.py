"""Plans and batches: every image once, one canvas a batch, and the same stream again from any step."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data.canvases import canvas_of, canvases
from dh_keras.data.pipeline import Plan, image_dataset, plan_batches, steps_per_epoch, train_dataset, training_indices
from dh_keras.data.transforms import resized_size
from dh_keras.errors import DataError

CONFIG = DataConfig(min_size=50, max_size=90, flip_probability=0.5)


@pytest.fixture
def folder(coco, make):
    """Seven PNG images, so that pixels are exact: five landscape, one portrait, one square; two without boxes."""
    sizes = [(40, 60), (60, 100), (45, 80), (100, 60), (64, 64), (50, 90), (30, 90)]
    for number, (height, width) in enumerate(sizes, start=1):
        data = make.encode(make.pixels(height, width, number), "PNG")
        coco.image(height, width, data=data, id=100 + number)
    coco.box(101, [6, 4, 30, 20], category_id=1)
    coco.box(101, [0, 0, 60, 40], category_id=3)
    coco.box(101, [10, 10, 5, 5], category_id=3)
    coco.box(102, [50, 30, 50, 30], category_id=3)
    coco.box(104, [10, 20, 30, 60], category_id=1)
    coco.box(105, [1, 2, 3, 4], category_id=1)
    coco.box(106, [1, 2, 30, 4], category_id=3)
    coco.box(106, [7, 7, 0.0005, 9], category_id=3)
    return coco


def numpy_batches(dataset):
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


def assert_same_stream(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Canvases.


def test_canvases_are_multiples_of_32_without_duplicates():
    assert canvases(800, 1333) == [(800, 1344), (1344, 800), (800, 800)]
    assert canvases(240, 320) == [(256, 320), (320, 256), (256, 256)]
    assert canvases(100, 120) == [(128, 128)]


def test_each_image_gets_the_smallest_canvas_that_holds_it():
    sizes = [(480, 640), (640, 480), (500, 500), (100, 103), (103, 100), (10, 4000)]
    index = canvas_of(np.array(sizes), min_size=240, max_size=320)
    # 100x103 becomes 240x247, which the 256x256 square holds; 10x4000 becomes 1x320.
    assert [canvases(240, 320)[i] for i in index] == [(256, 320), (320, 256)] + [(256, 256)] * 3 + [(256, 320)]
    assert index.dtype == np.int32


def test_numpy_and_graph_agree_on_resized_sizes_and_every_image_fits():
    random = np.random.default_rng(0)
    sizes = np.exp(random.uniform(0, 8.5, (3000, 2))).astype(np.int32) + 1
    for limits in ({"min_size": 240, "max_size": 320}, {"min_size": 33, "max_size": 97}):
        resize = tf.function(lambda size, limits=limits: resized_size(size, **limits))
        resized = tf.map_fn(resize, tf.constant(sizes)).numpy()
        assert resized.min() >= 1
        table = np.array(canvases(**limits))
        fits = (resized[:, None] <= table).all(axis=2)
        area = np.where(fits, table.prod(axis=1), 10**9)
        assert area.min(axis=1).max() < 10**9
        np.testing.assert_array_equal(canvas_of(sizes, **limits), area.argmin(axis=1))


# Plans.


def test_a_plan_shows_every_image_in_every_epoch_and_never_mixes_canvases():
    canvas_index = np.array([0] * 11 + [1] * 2 + [2] * 5)
    plan = plan_batches(canvas_index, batch_size=4, epochs=3, seed=5)
    steps = steps_per_epoch(canvas_index, 4)
    assert steps == 3 + 1 + 2
    assert plan.dtype == np.int32
    assert plan.shape == (3 * steps, 4)
    for epoch in plan.reshape(3, steps, 4):
        assert set(epoch.ravel()) == set(range(18))
        assert all(len(set(canvas_index[row])) == 1 for row in epoch)
        counts = np.bincount(epoch.ravel())
        assert counts[:11].max() <= 2
        assert counts[11:13].tolist() == [2, 2]
    assert not np.array_equal(plan[:steps], plan[steps : 2 * steps])


def test_a_plan_does_not_depend_on_how_many_epochs_follow_but_on_the_seed():
    canvas_index = np.array([0, 1, 0, 0, 1, 0, 0])
    long = plan_batches(canvas_index, batch_size=2, epochs=6, seed=1)
    short = plan_batches(canvas_index, batch_size=2, epochs=2, seed=1)
    np.testing.assert_array_equal(long[: len(short)], short)
    assert not np.array_equal(short, plan_batches(canvas_index, batch_size=2, epochs=2, seed=2))


@pytest.mark.parametrize("repeats", [None, np.linspace(1, 2.5, 20)])
def test_a_plan_by_epochs_is_the_same_as_the_table_of_all_steps(repeats):
    indices, canvas_index = np.arange(0, 40, 2, dtype=np.int32), np.arange(20) % 3
    table = indices[plan_batches(canvas_index, batch_size=3, epochs=3, seed=5, repeats=repeats)]
    per_epoch = len(table) // 3
    steps = 2 * per_epoch + 1
    plan = Plan(indices, canvas_index, repeats, batch_size=3, seed=5, steps=steps)
    np.testing.assert_array_equal(np.concatenate(list(plan.epochs())), table[:steps])
    for start in (0, 1, per_epoch, per_epoch + 2, steps - 1):
        rows = list(plan.rows(start).as_numpy_iterator())
        np.testing.assert_array_equal(rows, table[start:steps])
    assert list(plan.rows(steps)) == []
    assert all(np.array_equal(plan.step(step), table[step]) for step in (0, 1, steps - 1))


def test_a_plan_without_an_end_is_begun_at_once(folder):
    plan = Plan(np.arange(3, dtype=np.int32), np.zeros(3, int), None, batch_size=2, seed=1, steps=10**12)
    start = 2 * 10**11
    first = next(iter(train_dataset(folder.load(), CONFIG, plan=plan, seed=0, start_step=start)))
    images = folder.load().image_ids[plan.epoch(start // 2)[0]]
    np.testing.assert_array_equal(first["image_ids"], images)


def test_the_order_of_canvases_is_shuffled_too():
    canvas_index = np.repeat([0, 1], 32)
    plan = plan_batches(canvas_index, batch_size=4, epochs=1, seed=0)
    canvas_of_step = canvas_index[plan[:, 0]]
    assert 0 < np.abs(np.diff(canvas_of_step)).sum() < 15
    assert np.abs(np.diff(canvas_of_step)).sum() > 1


def test_training_images_are_all_or_those_with_boxes(folder):
    dataset = folder.load()
    assert training_indices(dataset, filter_empty=False).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert training_indices(dataset, filter_empty=True).tolist() == [0, 1, 3, 4, 5]


def test_a_split_without_any_box_cannot_be_trained_on(coco):
    coco.image(40, 60)
    coco.box(1, [0, 0, 9, 9], iscrowd=1)
    with pytest.raises(DataError, match="no box to train on in 1 images") as error:
        training_indices(coco.load(), filter_empty=False)
    assert str(coco.annotations_path) in str(error.value)


# Batches.


def test_a_batch_holds_resized_padded_images_and_boxes_in_their_pixels(folder):
    config = DataConfig(min_size=50, max_size=90, flip_probability=0.0)
    plan = np.array([[0, 2], [1, 5]], np.int32)
    first, second = numpy_batches(train_dataset(folder.load(), config, plan=plan, seed=0))
    # 40x60 is scaled by 50 / 40 to 50x75, 45x80 by 50 / 45 to 50x89; both lie on the 64x96 canvas.
    assert first["image_sizes"].tolist() == [[50, 75], [50, 89]]
    assert first["images"].shape == (2, 64, 96, 3)
    for position, name in enumerate(["1.jpg", "3.jpg"]):
        height, width = first["image_sizes"][position]
        image = cv2.imread(str(folder.images_dir / name))[..., ::-1]
        expected = cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_LINEAR).astype(int)
        np.testing.assert_allclose(first["images"][position, :height, :width], expected, atol=1)
        assert first["images"][position, height:].sum() == 0
        assert first["images"][position, :, width:].sum() == 0
    np.testing.assert_allclose(
        first["gt_boxes"][0], [[5, 7.5, 30, 45], [0, 0, 50, 75], [12.5, 12.5, 18.75, 18.75]], rtol=1e-6
    )
    assert first["gt_boxes"][1].tolist() == [[0, 0, 0, 0]] * 3
    assert first["gt_classes"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert first["gt_valid"].tolist() == [[True] * 3, [False] * 3]
    assert first["image_ids"].tolist() == [101, 103]
    assert second["image_ids"].tolist() == [102, 106]
    # 60x100 becomes 50x83: the two axes are scaled by what they really became.
    np.testing.assert_allclose(second["gt_boxes"][0, 0], [25, 41.5, 50, 83], rtol=1e-6)


def test_a_box_that_vanishes_is_no_target(folder):
    dataset = folder.load()
    assert dataset.counts["boxes"] == 8
    (batch,) = numpy_batches(train_dataset(dataset, CONFIG, plan=np.array([[5]]), seed=0))
    assert batch["gt_valid"].tolist() == [[True, False]]
    assert batch["gt_boxes"][0, 1].tolist() == [0, 0, 0, 0]
    assert batch["gt_classes"].tolist() == [[1, 0]]


def test_a_batch_of_empty_images_has_one_row_that_is_not_valid(folder):
    (batch,) = numpy_batches(train_dataset(folder.load(), CONFIG, plan=np.array([[2, 6]]), seed=0))
    assert batch["gt_boxes"].tolist() == [[[0, 0, 0, 0]]] * 2
    assert batch["gt_classes"].tolist() == [[0], [0]]
    assert batch["gt_valid"].tolist() == [[False], [False]]


def test_element_spec_has_a_static_batch_and_the_documented_types(folder):
    spec = train_dataset(folder.load(), CONFIG, plan=np.zeros((3, 2), np.int32), seed=0).element_spec
    assert {name: (item.shape.as_list(), item.dtype) for name, item in spec.items()} == {
        "images": ([2, None, None, 3], tf.uint8),
        "image_sizes": ([2, 2], tf.int32),
        "gt_boxes": ([2, None, 4], tf.float32),
        "gt_classes": ([2, None], tf.int32),
        "gt_valid": ([2, None], tf.bool),
        "image_ids": ([2], tf.int64),
    }


def test_flipped_examples_are_mirrored_with_their_boxes_and_about_half_are(folder):
    dataset = folder.load()
    plan = np.zeros((100, 2), np.int32)
    batches = numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=3))
    still = DataConfig(min_size=50, max_size=90, flip_probability=0.0)
    (plain,) = numpy_batches(train_dataset(dataset, still, plan=plan[:1], seed=3))
    image, boxes = plain["images"][0, :50, :75], plain["gt_boxes"][0]
    mirrored = np.stack([boxes[:, 0], 75 - boxes[:, 3], boxes[:, 2], 75 - boxes[:, 1]], axis=1)
    flips = []
    for batch in batches:
        for position in range(2):
            flipped = not np.array_equal(batch["images"][position, :50, :75], image)
            flips.append(flipped)
            expected = (image[:, ::-1], mirrored) if flipped else (image, boxes)
            np.testing.assert_array_equal(batch["images"][position, :50, :75], expected[0])
            np.testing.assert_allclose(batch["gt_boxes"][position], expected[1], rtol=1e-6)
            assert batch["images"][position, :, 75:].sum() == 0
    assert 70 <= sum(flips) <= 130
    assert flips[0::2] != flips[1::2]
    assert 30 <= sum(flips[0::2]) <= 70


def test_flip_probability_one_flips_all(folder):
    always = DataConfig(min_size=50, max_size=90, flip_probability=1.0)
    for batch in train_dataset(folder.load(), always, plan=np.full((20, 1), 3), seed=0):
        # 100x60 becomes 83x50, its box 10..40 of 60 becomes 20..50 of 60.
        np.testing.assert_allclose(batch["gt_boxes"][0, 0], [16.6, 50 / 3, 66.4, 125 / 3], rtol=1e-6)


def test_the_stream_is_the_same_again_and_from_the_middle(folder):
    dataset = folder.load()
    canvas_index = canvas_of(dataset.sizes, min_size=50, max_size=90)
    plan = plan_batches(canvas_index, batch_size=2, epochs=4, seed=9)
    whole = numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=9))
    assert len(whole) == len(plan)
    assert_same_stream(whole, numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=9)))
    rest = numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=9, start_step=7))
    assert_same_stream(whole[7:], rest)
    other = numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=10))
    assert any(not np.array_equal(a["gt_boxes"], b["gt_boxes"]) for a, b in zip(whole, other, strict=True))


def test_batches_follow_the_plan_and_share_a_canvas(folder):
    dataset = folder.load()
    table, canvas_index = canvases(50, 90), canvas_of(dataset.sizes, min_size=50, max_size=90)
    plan = plan_batches(canvas_index, batch_size=3, epochs=2, seed=4)
    for row, batch in zip(plan, train_dataset(dataset, CONFIG, plan=plan, seed=4), strict=True):
        assert batch["image_ids"].numpy().tolist() == dataset.image_ids[row].tolist()
        assert tuple(batch["images"].shape[1:3]) == table[canvas_index[row[0]]]


def test_workers_get_disjoint_shares_that_make_up_the_whole_batch(folder):
    dataset = folder.load()
    plan = np.array([[0, 1, 2, 5], [5, 2, 1, 0], [6, 0, 1, 1]], np.int32)
    whole = numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=2))
    shares = [numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=2, shard=(w, 2))) for w in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in ("images", "image_sizes", "image_ids"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])
        total = sum(part["gt_boxes"].sum(dtype=np.float64) for part in parts)
        np.testing.assert_allclose(total, batch["gt_boxes"].sum(dtype=np.float64), rtol=1e-6)
    replicas = numpy_batches(train_dataset(dataset, CONFIG, plan=plan, seed=2, shard=(1, 2), parts=2))
    seen = np.concatenate([batch["image_ids"] for batch in replicas]).reshape(-1, 2)
    np.testing.assert_array_equal(seen, [batch["image_ids"][2:] for batch in whole])
    assert all(len(batch["image_ids"]) == 1 for batch in replicas)
    for wrong in ({"shard": (0, 3)}, {"shard": (0, 2), "parts": 3}, {"shard": (2, 2)}):
        with pytest.raises(ValueError, match="batch of 4"):
            train_dataset(dataset, CONFIG, plan=plan, seed=2, **wrong)


def test_upright_frame_is_used_for_an_exif_rotated_photo(coco, make):
    data = make.with_segments(make.encode(make.pixels(60, 100), subsampling=0), make.exif(6))
    coco.image(100, 60, data=data)
    coco.box(1, [10, 20, 30, 60])
    dataset = coco.load()
    config = DataConfig(min_size=60, max_size=100, flip_probability=0.0)
    (batch,) = numpy_batches(train_dataset(dataset, config, plan=np.array([[0]]), seed=0))
    assert batch["image_sizes"].tolist() == [[100, 60]]
    assert batch["gt_boxes"].tolist() == [[[20, 10, 80, 40]]]
    expected = np.rot90(make.pixels(60, 100), -1).astype(int)  # orientation 6: shown after a clockwise quarter turn
    error = np.abs(batch["images"][0, :100, :60].astype(int) - expected)
    assert np.median(error) <= 2


def test_an_image_whose_size_changed_after_loading_stops_the_stream(coco, make):
    path = coco.image(40, 60)
    dataset = coco.load()
    path.write_bytes(make.encode(make.pixels(60, 40)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="image size is not the annotated one"):
        list(train_dataset(dataset, CONFIG, plan=np.array([[0]]), seed=0))


def test_evaluation_images_come_in_order_in_their_own_size(folder, make):
    items = [(int(index), image.numpy()) for index, image in image_dataset(folder.load(), [4, 0, 3])]
    assert [index for index, _ in items] == [4, 0, 3]
    for (_, image), size, seed in zip(items, [(64, 64), (40, 60), (100, 60)], [5, 1, 4], strict=True):
        np.testing.assert_array_equal(image, make.pixels(*size, seed))


def test_nothing_is_left_to_automatic_sharding(folder):
    dataset = folder.load()
    for stream in (train_dataset(dataset, CONFIG, plan=np.array([[0]]), seed=0), image_dataset(dataset, [0])):
        options = stream.options()
        assert options.experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.OFF
        assert options.deterministic is True

"""TFRecord files give the batches that the same images in a folder give, whoever wrote them."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from official.vision.data import create_coco_tf_record
from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder

from dh_keras.config.schema import DataConfig
from dh_keras.data.balance import epoch_images
from dh_keras.data.formats.record_scan import scan_offsets, stored_size
from dh_keras.data.formats.record_writer import write_tfrecords
from dh_keras.data.formats.tfrecord import load_tfrecords, sidecar_of
from dh_keras.data.pipeline import plan_batches, train_dataset
from dh_keras.data.splits import load_splits
from dh_keras.errors import DataError, WriteError
from dh_keras.run.classes import Category

CONFIG = DataConfig(min_size=50, max_size=90)


@pytest.fixture
def folder(coco, make):
    """Five images of odd sizes, ids with gaps, PNG and JPEG, a crowd, a degenerate box, and one without boxes."""
    sizes = [(41, 61), (61, 101), (101, 61), (45, 80), (64, 64)]
    for number, (height, width) in enumerate(sizes, start=1):
        png = make.encode(make.pixels(height, width, number), "PNG") if number == 5 else None
        coco.image(height, width, data=png, id=100 + 7 * number)
    coco.box(107, [6, 4, 30, 20], category_id=1)
    coco.box(107, [0, 0, 61, 41], category_id=3)
    coco.box(107, [10, 10, 20, 20], category_id=3, iscrowd=1)
    coco.box(114, [50, 30, 60, 30], category_id=3)
    coco.box(121, [10, 20, 30, 60], category_id=1)
    coco.box(121, [10, 20, 0, 60], category_id=1)
    coco.box(135, [1, 2, 3, 4], category_id=3)
    return coco


def batches(dataset, config=CONFIG, **options):
    images = epoch_images(dataset, config)
    plan = images.indices[plan_batches(images.canvas_index, batch_size=2, epochs=2, seed=3)]
    return list(train_dataset(dataset, config, plan=plan, seed=3, **options).as_numpy_iterator())


def example(**changes):
    """A record in the schema, as a dict of features."""
    values = {
        "image/encoded": [tf.io.encode_jpeg(np.full((20, 30, 3), 99, np.uint8)).numpy()],
        "image/height": [20],
        "image/width": [30],
        "image/source_id": [b"5"],
        "image/object/bbox/xmin": [0.1],
        "image/object/bbox/xmax": [0.5],
        "image/object/bbox/ymin": [0.25],
        "image/object/bbox/ymax": [0.75],
        "image/object/class/label": [3],
    }
    values |= {name.replace("__", "/"): value for name, value in changes.items()}
    return values


def write(path, *examples, categories=((3, "cat"), (1, "dog"))):
    kinds = {bytes: ("bytes_list", tf.train.BytesList), int: ("int64_list", tf.train.Int64List)}
    with tf.io.TFRecordWriter(str(path)) as writer:
        for values in examples:
            features = {}
            for name, value in values.items():
                if value:
                    field, kind = kinds.get(type(value[0]), ("float_list", tf.train.FloatList))
                    features[name] = tf.train.Feature(**{field: kind(value=value)})
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    if categories:
        rows = [{"id": number, "name": name} for number, name in categories]
        sidecar_of(path).write_text(json.dumps({"categories": rows}))
    return path


# Writing and reading back.


@pytest.mark.parametrize("shards", [1, 3])
def test_written_records_are_the_split_again(folder, tmp_path, shards):
    dataset = folder.load()
    written = write_tfrecords(dataset, tmp_path / "out" / "train", shards=shards)
    assert [path.name for path in written] == [
        *(f"train-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)),
        "train.categories.json",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(path.name for path in written)
    records = load_tfrecords(str(tmp_path / "out" / "train-*.tfrecord"))
    assert records.categories == dataset.categories == (Category(1, "dog"), Category(3, "cat"))
    order = [index for shard in range(shards) for index in range(shard, 5, shards)]
    assert records.image_ids.tolist() == dataset.image_ids[order].tolist()
    assert records.sizes.tolist() == dataset.sizes[order].tolist()
    for index, original in enumerate(order):
        np.testing.assert_allclose(records.boxes_of(index), dataset.boxes_of(original), atol=1e-4)
        assert records.classes_of(index).tolist() == dataset.classes_of(original).tolist()
    wanted = ("images", "boxes", "crowd", "empty_images", "clipped")
    assert {name: records.counts[name] for name in wanted} == {
        "images": 5,
        "boxes": 5,
        "crowd": 1,
        "empty_images": 1,
        "clipped": 1,
    }


def test_batches_are_those_of_the_folder(folder, tmp_path):
    dataset = folder.load()
    write_tfrecords(dataset, tmp_path / "t", shards=1)
    records = load_tfrecords(str(tmp_path / "t-*"))
    whole = batches(records)
    for expected, batch in zip(batches(dataset), whole, strict=True):
        assert batch.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(batch[name], expected[name], atol=1e-4, err_msg=name)
    for expected, batch in zip(whole[2:], batches(records, start_step=2), strict=True):
        np.testing.assert_array_equal(batch["images"], expected["images"])
    shares = [batches(records, shard=(worker, 2)) for worker in range(2)]
    for expected, *parts in zip(whole, *shares, strict=True):
        assert np.concatenate([part["image_ids"] for part in parts]).tolist() == expected["image_ids"].tolist()


def test_the_model_gardens_decoder_reads_what_is_written(folder, tmp_path):
    dataset = folder.load()
    path, _ = write_tfrecords(dataset, tmp_path / "t", shards=1)
    decoder = TfExampleDecoder()
    decoded = [decoder.decode(record) for record in tf.data.TFRecordDataset(str(path))]
    assert [int(row["source_id"]) for row in decoded] == [107, 114, 121, 128, 135]
    first = {name: value.numpy() for name, value in decoded[0].items()}
    assert first["groundtruth_classes"].tolist() == [1, 3, 3]
    assert first["groundtruth_is_crowd"].tolist() == [False, False, True]
    assert first["groundtruth_area"].tolist() == [600, 2501, 400]
    np.testing.assert_allclose(first["groundtruth_boxes"][0], [4 / 41, 6 / 61, 24 / 41, 36 / 61], rtol=1e-6)
    assert first["image"].shape == (41, 61, 3)
    assert decoded[3]["groundtruth_boxes"].shape == (0, 4)


def test_files_of_the_model_gardens_tool_take_their_categories_from_the_validation_split(folder, tmp_path):
    dataset = folder.load()
    names = {3: "cat", 1: "dog"}
    with tf.io.TFRecordWriter(str(tmp_path / "mg-00000-of-00001.tfrecord")) as writer:
        for image in folder.tree["images"]:
            own = [row for row in folder.tree["annotations"] if row["image_id"] == image["id"]]
            made, _ = create_coco_tf_record.create_tf_example(
                image, [str(folder.images_dir)], bbox_annotations=own, id_to_name_map=names
            )
            writer.write(made.SerializeToString())
    pattern = str(tmp_path / "mg-*.tfrecord")
    with pytest.raises(DataError, match=r"no file .*mg\.categories\.json with the names .*validation annotations"):
        load_tfrecords(pattern)
    config = DataConfig(
        train_tfrecords=pattern, val_annotations=str(folder.annotations_path), val_images=str(folder.images_dir)
    )
    train, val = load_splits(config)
    assert train.categories == val.categories == dataset.categories
    assert train.class_names == ("dog", "cat")
    assert train.image_ids.tolist() == dataset.image_ids.tolist()
    assert train.counts["crowd"] == 1
    for index in (0, 2, 3, 4):  # the tool leaves out the box of the second image that crosses the border
        np.testing.assert_allclose(train.boxes_of(index), dataset.boxes_of(index), atol=1e-4)
        assert train.classes_of(index).tolist() == dataset.classes_of(index).tolist()


def test_a_detector_learns_from_records(folder, tmp_path, make_tiny_detector):
    write_tfrecords(folder.load(), tmp_path / "t", shards=2)
    records = load_tfrecords(str(tmp_path / "t-*"))
    config = DataConfig(min_size=64, max_size=96, batch_size=2)
    images = epoch_images(records, config)
    plan = images.indices[plan_batches(images.canvas_index, batch_size=2, epochs=3, seed=0)]
    detector = make_tiny_detector(num_classes=2, lr=0.005)
    before = [variable.numpy() for variable in detector.trainable_variables]
    stream = train_dataset(records, config, plan=plan, seed=0)
    history = detector.fit(stream, steps_per_epoch=len(plan), verbose=0, shuffle=False)
    assert np.isfinite(history.history["total_loss"]).all()
    moved = [not np.array_equal(a, b) for a, b in zip(before, detector.trainable_variables, strict=True)]
    assert np.mean(moved) > 0.9


def test_exif_orientation_is_applied_as_for_a_folder(coco, make, tmp_path):
    jpeg = make.encode(make.pixels(40, 60))
    turned = make.with_segments(jpeg, make.exif(6))
    coco.image(60, 40, data=turned)
    coco.image(40, 60, data=turned, name="ignored.jpg")
    coco.box(1, [1, 2, 3, 4])
    dataset = coco.load()
    write_tfrecords(dataset, tmp_path / "t", shards=1)
    records = load_tfrecords(str(tmp_path / "t-*"))
    assert records.orientations.tolist() == dataset.orientations.tolist() == [6, 1]
    assert records.sizes.tolist() == [[60, 40], [40, 60]]


# Ids, labels, and what is dropped.


def test_ids_are_numbers_or_hashes_that_stay_the_same(tmp_path):
    path = write(
        tmp_path / "a.tfrecord",
        example(image__source_id=[b"0042"]),
        example(image__source_id=[b"frame-7"]),
        example(image__source_id=[]),
    )
    ids = load_tfrecords(path).image_ids
    assert ids[0] == 42
    assert ids[1] == 5906182847870775398  # the first 63 bits of the SHA-256 of "frame-7"
    assert ids.tolist() == load_tfrecords(path).image_ids.tolist()
    assert len(set(ids.tolist())) == 3
    assert ids.min() >= 0


def test_boxes_over_the_border_are_clipped_and_flat_ones_dropped(tmp_path):
    path = write(
        tmp_path / "a.tfrecord",
        example(
            **{
                "image/object/bbox/xmin": [-0.1, 0.5, 0.5],
                "image/object/bbox/xmax": [1.2, 0.5, 0.4],
                "image/object/bbox/ymin": [0.25, 0.1, 0.1],
                "image/object/bbox/ymax": [0.75, 0.9, 0.9],
                "image/object/class/label": [3, 1, 1],
            }
        ),
    )
    records = load_tfrecords(path)
    np.testing.assert_allclose(records.boxes, [[5, 0, 15, 30]], atol=1e-5)
    assert records.classes.tolist() == [1]
    assert (records.counts["degenerate"], records.counts["clipped"]) == (2, 1)


def test_records_without_boxes_or_without_a_size_are_images_all_the_same(tmp_path):
    nothing = {name: [] for name in example() if name.startswith("image/object")}
    path = write(tmp_path / "a.tfrecord", example(), nothing | example(**nothing, image__source_id=[b"6"]))
    records = load_tfrecords(path)
    assert records.counts["empty_images"] == 1
    unsized = write(tmp_path / "b.tfrecord", example(image__height=[], image__width=[]))
    assert load_tfrecords(unsized).sizes.tolist() == [[20, 30]]
    png = tf.io.encode_png(np.zeros((7, 300, 3), np.uint8)).numpy()
    unsized = write(tmp_path / "c.tfrecord", example(image__encoded=[png], image__height=[], image__width=[]))
    assert load_tfrecords(unsized).sizes.tolist() == [[7, 300]]


def test_the_size_in_a_header_is_read_without_decoding():
    for height, width in ((1, 1), (255, 256), (70000, 3)):
        assert stored_size(tf.io.encode_png(np.zeros((height, width, 3), np.uint8))).numpy().tolist() == [height, width]
    assert stored_size(tf.io.encode_jpeg(np.zeros((31, 500, 3), np.uint8))).numpy().tolist() == [31, 500]
    assert stored_size(tf.constant(b"GIF89a")).numpy().tolist() == [0, 0]


def test_offsets_are_where_the_writer_began_each_record(tmp_path):
    path = str(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for length in (0, 5, 1000):
            writer.write(b"x" * length)
    assert scan_offsets(path).tolist() == [0, 16, 37]


# Bad input: one line each.


def assert_refused(pattern, expected, **options):
    with pytest.raises(DataError, match=expected) as error:
        load_tfrecords(str(pattern), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_file_that_is_cut_off_is_named(tmp_path, keep):
    path = write(tmp_path / "a.tfrecord", example(), example(image__source_id=[b"6"]))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) - 3])
    assert_refused(path, rf"TFRecord file {path}: cut off in record {1 if keep == 0.5 else 2}, or not")


def test_a_flipped_byte_is_found_before_training(tmp_path):
    path = write(tmp_path / "a.tfrecord", example(), example(image__source_id=[b"6"]))
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(bytes(data))
    assert_refused(path, rf"record 2 of {path}: cannot be read \(corrupted record")


def test_no_files_and_no_records_and_other_files_are_refused(tmp_path):
    assert_refused(tmp_path / "none-*", r"TFRecords .*none-\*: no such file; expected a pattern")
    assert_refused(write(tmp_path / "a.tfrecord"), "no record in 1 files")
    write(tmp_path / "b.tfrecord", example())
    (tmp_path / "b.tfrecord").write_text("{'this': 'is something else'}")
    assert_refused(tmp_path / "b.tfrecord", r"b\.tfrecord: cut off in record 1, or not an uncompressed TFRecord")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image/object/class/label": [2]}, r"a\.tfrecord/image_5: label 2 is no category id; expected one of 1, 3"),
        (
            {"image/object/class/label": []},
            r"record 1 of .*: its boxes, labels, is_crowd and area are not equally many",
        ),
        ({"image/object/bbox/xmin": []}, r"record 1 of .*a\.tfrecord: cannot be read \(.*detection schema"),
        ({"image/object/bbox/xmax": [15.0]}, r"is in pixels; expected shares of the image's sides, from 0 to 1"),
        ({"image/height": [21]}, r"the image is 30x20 but image/width and image/height say 30x21"),
        ({"image/encoded": [b"GIF89a"]}, r"record 1 of .*: image/encoded is neither JPEG nor PNG"),
        ({"image/encoded": []}, r"record 1 of .*: cannot be read \(.*image/encoded"),
    ],
)
def test_a_record_that_cannot_be_trained_on_is_named(tmp_path, changes, expected):
    assert_refused(write(tmp_path / "a.tfrecord", example(**changes)), expected)


def test_images_that_come_twice_are_refused(tmp_path):
    write(tmp_path / "a-00000-of-00001.tfrecord", example())
    write(tmp_path / "a-00000-of-00002.tfrecord", example())
    assert_refused(tmp_path / "a-*.tfrecord", "two records have the image/source_id '5'; does the pattern match")


def test_category_files_must_be_right_and_agree(tmp_path):
    write(tmp_path / "a.tfrecord", example())
    write(tmp_path / "b.tfrecord", example(image__source_id=[b"6"]), categories=((3, "bird"),))
    assert_refused(tmp_path / "*.tfrecord", r"b\.tfrecord\.categories\.json: differ from those in .*a\.tfrecord")
    sidecar_of(tmp_path / "a.tfrecord").write_text("[]")
    assert_refused(tmp_path / "a.tfrecord", r'expected \{"categories": \[\{"id": 1, "name": "\.\.\."\}')


def test_nothing_is_overwritten_and_nothing_is_left_behind(folder, tmp_path):
    dataset = folder.load()
    out = tmp_path / "out"
    with pytest.raises(DataError, match="shards: expected 1 to 5, the number of images, got 6"):
        write_tfrecords(dataset, out / "t", shards=6)
    assert not out.exists()
    (first, _) = write_tfrecords(dataset, out / "t", shards=1)
    before = first.read_bytes()
    with pytest.raises(DataError, match=r"t-00000-of-00001\.tfrecord: exists already"):
        write_tfrecords(dataset, out / "t", shards=1)
    assert first.read_bytes() == before
    os.remove(dataset.paths[2])
    with pytest.raises(FileNotFoundError):
        write_tfrecords(dataset, out / "u", shards=2)
    assert sorted(os.listdir(out)) == ["t-00000-of-00001.tfrecord", "t.categories.json"]


def test_records_that_the_disk_does_not_take_are_one_line(folder, tmp_path, small_files):
    dataset = folder.load()
    small_files()
    with pytest.raises(WriteError, match=r"out: cannot be written: File too large; raise the limit"):
        write_tfrecords(dataset, tmp_path / "out" / "t", shards=2)
    assert not (tmp_path / "out").exists()

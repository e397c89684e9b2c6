"""The commands around the training data do what they say, and refuse bad input in one line."""

import json

import numpy as np
import pytest

from dh_keras.benchmark import input_speed as speed
from dh_keras.commands.main import main
from dh_keras.config.schema import AUGMENTATIONS, DataConfig
from dh_keras.data.formats.record_writer import write_tfrecords
from dh_keras.data.formats.tfrecord import load_tfrecords
from dh_keras.data.pipeline import find_bad_image
from dh_keras.run.run_folder import RunFolder


def run(name, *arguments):
    main([name, *map(str, arguments)])


@pytest.fixture
def folder(coco):
    for number in range(1, 5):
        coco.image(40 + number, 61)
        coco.box(number, [1, 2, 30, 20])
    coco.write()
    return coco


def test_make_tfrecords_writes_files_that_load(folder, tmp_path, capsys):
    given = ("--annotations", folder.annotations_path, "--images", folder.images_dir)
    run("make-tfrecords", *given, "--output", tmp_path / "out" / "t", "--shards", 2)
    shown = capsys.readouterr().out
    assert "4 images, 4 boxes" in shown
    assert f"--tfrecords '{tmp_path}/out/t-*.tfrecord'" in shown
    records = load_tfrecords(tmp_path / "out" / "t-*.tfrecord")
    assert len(records.record_files) == 2
    assert sorted(records.image_ids.tolist()) == [1, 2, 3, 4]
    categories = json.loads((tmp_path / "out" / "t.categories.json").read_text())
    assert categories == {"categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]}
    with pytest.raises(SystemExit) as stopped:
        run("make-tfrecords", *given, "--output", tmp_path / "out" / "t", "--shards", 2)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.strip().startswith(f"error: {tmp_path}/out/t-00000-of-00002.tfrecord: exists alr")


def test_make_tfrecords_takes_no_config(folder, tmp_path, capsys):
    given = ("--annotations", folder.annotations_path, "--images", folder.images_dir, "--output", tmp_path / "t")
    with pytest.raises(SystemExit):
        run("make-tfrecords", *given, "data.min_size=3")
    assert "takes no overrides, got 'data.min_size=3'" in capsys.readouterr().err


def test_train_passes_the_pattern_on_as_it_is(tmp_path, monkeypatch):
    seen = {}

    def train(config, **options):
        seen["config"] = config
        return RunFolder(tmp_path / "run", config, ())

    monkeypatch.setattr("dh_keras.training.loop.train", train)
    pattern = ("--config", "shapes_tiny", "--tfrecords", "*/train-[0-9]*.tfrecord")
    run("train", *pattern, "--output", tmp_path / "run", "data.augmentation=none")
    assert seen["config"].data.train_tfrecords == "*/train-[0-9]*.tfrecord"
    assert seen["config"].data.augmentation == "none"


def test_an_image_that_is_damaged_after_the_start_is_found_by_its_name(folder, tmp_path):
    path, _ = write_tfrecords(folder.load(), tmp_path / "t", shards=1)
    records = load_tfrecords(path)
    assert find_bad_image(records) is None
    data = bytearray(path.read_bytes())
    data[records.record_offsets[2] + 600] ^= 1
    path.write_bytes(bytes(data))
    assert find_bad_image(records).startswith(f"image {path}/image_3: cannot be decoded (")
    assert find_bad_image(records, [0, 1, 3]) is None


def test_the_speed_is_images_over_seconds(folder, monkeypatch):
    clock, used = iter([10.0, 14.0]), iter([(1.0, 0.5), (2.0, 1.1)])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed.os, "times", lambda: next(used))
    data = DataConfig(min_size=32, max_size=64, batch_size=2)
    assert speed.measure_input(folder.load(), data, images=7, seed=0) == pytest.approx((8 / 4.0, 1.6 / 8))


def test_every_augmentation_is_measured_without_jitter_and_one_with(folder, capsys, monkeypatch):
    data = DataConfig(scale_jitter=[1.0, 2.0], batch_size=3)
    settings = speed.augmentations(data)
    assert [config.augmentation for config in settings.values()] == [*AUGMENTATIONS, "flip"]
    assert [config.scale_jitter for config in settings.values()] == [None] * 5 + [[0.1, 2.0]]
    assert {config.batch_size for config in settings.values()} == {3}
    monkeypatch.setattr(speed, "measure_input", lambda dataset, data, **_: (123.45, 0.0067))
    given = ("--annotations", folder.annotations_path, "--images", folder.images_dir)
    run("benchmark-data", *given, "data.min_size=32", "data.max_size=64")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("folder")]
    assert [line.split()[-2:] for line in lines] == [["123.5", "6.7"]] * 6
    assert np.all([name in line for name, line in zip(settings, lines, strict=True)])

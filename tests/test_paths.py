"""Data, runs, predictions and exports on a file system that is not this machine's disk: fsspec's memory."""

import csv
import importlib
import io
import json
import re
from pathlib import Path
from signal import SIGTERM, raise_signal

import fsspec
import numpy as np
import pytest
import tensorflow as tf

from dh_keras import files
from dh_keras.commands.main import main
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.tfrecord import load_tfrecords
from dh_keras.data.pipeline import find_bad_image, image_dataset
from dh_keras.errors import DataError, WriteError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.paths import absolute, local_file, local_folder, matching, normalized, to_path
from dh_keras.run.run_folder import open_run
from dh_keras.run.weights import initialize_weights, load_weights
from dh_keras.training.callbacks import StepCounter


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """An empty file system; a working directory that must stay empty, as memory:// is no folder of it."""
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.rm("/", recursive=True)
    yield system
    system.rm("/", recursive=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def shapes(memory, tiny_shapes):
    """`tiny_shapes` as memory://data; returns its parent."""
    folder = tiny_shapes.train_images.parent
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            memory.pipe(f"/data/{file.relative_to(folder)}", file.read_bytes())
    return to_path("memory://data")


def contents(memory):
    return {name: memory.cat(name) for name in memory.find("/")}


def test_paths_of_other_file_systems_are_kept_as_they_are():
    assert to_path("a/b") == Path("a/b")
    path = to_path("memory://a/b.txt")
    assert (str(path), path.name, str(path.parent / "c")) == ("memory://a/b.txt", "b.txt", "memory://a/c")
    assert to_path(path) == path
    assert absolute("memory://a/b/") == "memory://a/b"
    assert absolute("a") == str(Path.cwd() / "a")
    assert normalized("memory://a/./b/../c") == "memory://a/c"
    assert normalized("/a/../../b://../c") == "/c"
    with pytest.raises(DataError, match=r"nowhere://a: .*nowhere"):
        to_path("nowhere://a")


def test_a_library_that_lacks_is_named_before_a_file_is_read(monkeypatch):
    registry = importlib.import_module("fsspec.registry")
    missing = {"class": "none.HTTP", "err": "HTTP needs\naiohttp"}
    monkeypatch.setitem(registry.known_implementations, "http", missing)
    monkeypatch.delitem(registry._registry, "http", raising=False)
    with pytest.raises(DataError, match=r"^http://host/photo\.jpg: HTTP needs aiohttp$"):
        to_path("http://host/photo.jpg")


def test_a_command_says_which_library_a_path_needs(capsys):
    with pytest.raises(SystemExit):
        main(["export", "run", "--output", "nowhere://models/1"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"argument --output: nowhere://models/1: .*nowhere", last)


def test_an_image_that_is_lost_while_training_runs_is_named(shapes, memory):
    dataset = load_coco(shapes / "annotations" / "instances_val.json", shapes / "val")
    memory.rm("/data/val/000003.jpg")
    index = dataset.paths.index("memory://data/val/000003.jpg")
    assert re.match(r"image memory://data/val/000003\.jpg: cannot be decoded \(", find_bad_image(dataset))
    with pytest.raises(tf.errors.OpError, match="FileNotFoundError"):
        list(image_dataset(dataset, [index]))


def test_a_file_of_a_library_that_knows_disks_only_is_a_copy_for_a_while(memory):
    memory.pipe({"/a/x.txt": b"x", "/a/sub/y.txt": b"y"})
    with local_file("memory://a/x.txt") as copy:
        assert (copy.name, copy.read_bytes()) == ("x.txt", b"x")
    assert not copy.exists()
    with local_folder("memory://a") as folder:
        assert sorted(str(one.relative_to(folder)) for one in folder.rglob("*.txt")) == ["sub/y.txt", "x.txt"]
    assert not folder.exists()
    assert sorted(matching("memory://a/**/*.txt")) == ["memory:///a/sub/y.txt", "memory:///a/x.txt"]


def test_a_file_appears_when_it_is_complete_and_a_failure_leaves_the_old_one(memory):
    path = "memory://out/x.txt"
    with files.replaced_file(path) as partial:
        partial.write_text("old")
        assert contents(memory) == {}
    assert contents(memory) == {"/out/x.txt": b"old"}

    def fail():
        with files.replaced_file(path) as partial:
            partial.write_text("half")
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fail()
    with files.replaced_file(path):
        pass  # writes nothing
    assert contents(memory) == {"/out/x.txt": b"old"}
    files.write_json(path, [1], indent=None)
    assert contents(memory) == {"/out/x.txt": b"[1]"}
    with pytest.raises(DataError, match=r"^memory://out/x\.txt: exists already and is not overwritten"):
        files.require_absent(path)


def test_a_folder_arrives_with_the_files_that_say_what_it_is_last(memory, monkeypatch):
    arrived = []
    put_file = type(memory).put_file
    monkeypatch.setattr(type(memory), "put_file", lambda *given, **more: arrived.append(given[2]) or put_file(*given))
    with files.new_folder("memory://models/cells/1") as folder:
        for name in ("saved_model.pb", "variables/variables.index", "assets/labels.json"):
            files.write_text(folder / name, name)
        assert (folder.name, folder.parent.name) == ("1", "cells")
        assert contents(memory) == {}
    root = "/models/cells/1"
    assert arrived == [f"{root}/assets/labels.json", f"{root}/variables/variables.index", f"{root}/saved_model.pb"]
    assert not files.is_new_folder("memory://models/cells/1")
    assert files.is_new_folder("memory://models/cells/2")
    with pytest.raises(DataError, match="exists already and is not overwritten"), files.new_folder("memory://models"):
        pytest.fail("the block was entered")
    files.remove_folder("memory://models/cells")
    assert contents(memory) == {}


def test_what_another_file_system_refuses_is_one_line(memory, monkeypatch):
    def refuse(*given, **more):
        raise RuntimeError("403: the key\nmay not write")

    for way in ("put_file", "pipe_file"):
        monkeypatch.setattr(type(memory), way, refuse)
    line = "^memory://out/x: cannot be written: 403: the key may not write; check the name, and what this user may$"
    for write in (lambda path: files.write_text(path, "x"), lambda path: files.require_writable(path, 0)):
        with pytest.raises(WriteError, match=line):
            write("memory://out/x")
    assert contents(memory) == {}


def test_a_split_is_the_one_of_the_disk_and_opened_once(shapes, tiny_shapes, memory, monkeypatch):
    from dh_keras.data import images

    opened = []
    open_binary = images.open_binary
    monkeypatch.setattr(images, "open_binary", lambda path, **more: opened.append(path) or open_binary(path, **more))
    expected = load_coco(tiny_shapes.train_annotations, tiny_shapes.train_images)
    opened.clear()
    annotations = shapes / "annotations" / "instances_train.json"
    for count in (12, 0):
        dataset = load_coco(str(annotations), str(shapes / "train"))
        assert len(opened) == count
        opened.clear()
        assert dataset.sizes.tolist() == expected.sizes.tolist()
        assert dataset.coco_tree() == expected.coco_tree()
    name = Path(dataset.paths[3]).name
    memory.pipe(f"/data/train/{name}", (tiny_shapes.train_images / name).read_bytes())  # written again
    load_coco(annotations, shapes / "train")
    assert opened == [f"memory://data/train/{name}"]
    for index in range(3):
        assert dataset.bytes_reader()(index).numpy() == Path(expected.paths[index]).read_bytes()
    memory.rm(f"/data/train/{name}")
    with pytest.raises(DataError, match=rf"1 of 12 image files are missing, the first is memory://data/train/{name}"):
        load_coco(annotations, shapes / "train")


@pytest.mark.parametrize("name", ["../val/1.jpg", "/etc/passwd", "a/../../x.jpg", "..://../../x.jpg"])
def test_no_image_lies_outside_of_its_folder(memory, tmp_path_factory, name):
    tree = {"images": [{"id": 1, "file_name": name, "height": 1, "width": 1}], "annotations": []}
    text = json.dumps(tree | {"categories": [{"id": 1, "name": "a"}]}).encode()
    memory.pipe({"/data/a.json": text, "/data/train/x": b"", "/data/val/1.jpg": b""})
    with pytest.raises(DataError, match=r"leaves the image folder|1 of 1 image files are missing"):
        load_coco("memory://data/a.json", "memory://data/train")
    local = tmp_path_factory.mktemp("local")
    (local / "a.json").write_bytes(text)
    with pytest.raises(DataError, match="leaves the image folder"):
        load_coco(local / "a.json", local)


def test_records_are_written_and_read_again(shapes, memory, monkeypatch):
    from dh_keras.data.formats import record_scan

    given = ("--annotations", shapes / "annotations" / "instances_train.json", "--images", shapes / "train")
    main(["make-tfrecords", *map(str, given), "--output", "memory://records/train", "--shards", "2"])
    assert [Path(name).name for name in memory.find("/records")] == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train.categories.json",
    ]
    expected = load_coco(given[1], given[3])
    where = {number: row for row, number in enumerate(expected.image_ids.tolist())}
    for fetched in (record_scan._FETCH, 100):  # most of a record is fetched in a second piece
        monkeypatch.setattr(record_scan, "_FETCH", fetched)
        records = load_tfrecords("memory://records/train-*.tfrecord")
        assert len(records) == 12
        read = records.bytes_reader()
        for index, number in enumerate(records.image_ids.tolist()):
            row = where[number]
            assert read(index).numpy() == to_path(expected.paths[row]).read_bytes()
            np.testing.assert_allclose(records.boxes_of(index), expected.boxes_of(row), atol=1e-3)


@pytest.mark.slow
def test_training_to_export_happens_elsewhere(shapes, memory, tiny_overrides, quick_graphs, capsys, monkeypatch):
    """From annotations to a SavedModel without a file on this disk; a stopped run goes on, and all find the same."""
    data = [f"--{split}-{kind}" for split in ("train", "val") for kind in ("annotations", "images")]
    places = [f"{shapes}/{place}" for place in ("annotations/instances_train.json", "train")]
    places += [place.replace("train", "val") for place in places]
    given = [word for pair in zip(data, places, strict=True) for word in pair]
    length = ["train.steps=4", "train.epochs=null", "train.drops=[]", "train.pictures=1", "model.score_threshold=0.0"]

    count = StepCounter.on_train_batch_end

    def count_and_stop(self, batch, logs=None):
        if self.progress.step == 1:
            raise_signal(SIGTERM)
        count(self, batch, logs)

    monkeypatch.setattr(StepCounter, "on_train_batch_end", count_and_stop)
    with pytest.raises(SystemExit):
        main(["train", *given, "--output", "memory://runs/one", *tiny_overrides, *length])
    monkeypatch.setattr(StepCounter, "on_train_batch_end", count)
    message = "stopped by SIGTERM after step 2; go on with: dh-keras train --resume --output memory://runs/one\n"
    assert capsys.readouterr().err.endswith(message)
    main(["train", "--resume", "--output", "memory://runs/one"])
    assert "resumed memory://runs/one: 2 of 4 steps done" in capsys.readouterr().out
    run = open_run("memory://runs/one")
    rows = list(csv.DictReader(io.StringIO((run.path / "metrics.csv").read_text())))
    assert [row["step"] for row in rows] == ["4"]
    inside = {name.removeprefix("/runs/one/").partition("/")[0] for name in memory.find("/runs/one")}
    assert {"state.npz", "best.weights.h5", "last.weights.h5", "tensorboard", "pictures", "model_card.md"} <= inside
    first, second = map(memory.cat, sorted(memory.find("/runs/one/tensorboard/epochs")))
    assert (b"total_loss" in first, b"total_loss" in second) == (False, True)

    export = "memory://models/shapes/1"
    main(["export", str(run.path), "--output", export, "--verify", f"{places[3]}/000001.jpg"])
    assert "verified: " in capsys.readouterr().out
    metrics = []
    for model in (str(run.path), export):
        main(["evaluate", model, "--annotations", places[2], "--images", places[3], "--output", f"{model}.json"])
        metrics.append(json.loads(to_path(f"{model}.json").read_text()))
    assert metrics[0]["images"] == 6
    assert metrics[0]["AR100"] == pytest.approx(metrics[1]["AR100"], abs=1e-3)
    assert float(rows[0]["AP"]) == pytest.approx(metrics[0]["AP"], abs=1e-4)
    main(["predict", export, places[3], f"{places[3]}/*.jpg", "--output", "memory://out", "--score", "0"])
    predictions = json.loads(memory.cat("/out/predictions.json"))
    assert [row["file"] for row in predictions] == [f"{places[3]}/{i:06d}.jpg" for i in range(1, 7)]
    assert len(memory.glob("/out/*.jpg")) == 6

    models = [assemble_detector(run.config.model, num_classes=3, seed=seed) for seed in (1, 2)]
    assert initialize_weights(models[0], str(run.path), run.categories) == []
    load_weights(models[1], run.weights)
    for weight, expected in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(weight, expected)

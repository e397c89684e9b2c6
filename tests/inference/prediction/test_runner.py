"""Detection in many files: batches, faults, going on after a kill, shards."""

import contextlib
import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inference.prediction.helpers import FakeDetector, assert_rows_agree, read_rows
from PIL import Image

from dh_keras.errors import DataError, WriteError
from dh_keras.inference.drawing import draw_detections
from dh_keras.inference.prediction.folder import PredictionFolder, PredictionSettings
from dh_keras.inference.prediction.image_files import ImageFile, _canvas, detect_images
from dh_keras.inference.prediction.merge import merge_predictions
from dh_keras.inference.prediction.predict_files import predict_files
from dh_keras.inference.prediction.sources import Item, Shard, list_sources

TESTS = Path(__file__).resolve().parents[2]
BATCHES = PredictionSettings(score=0.0, batch_size=3, pictures=False)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """What the fake detector finds in all images, in batches of three and chunks of two files."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dh_keras.inference.prediction.sources.CHUNK_IMAGES", 2)
        predict_files(FakeDetector(), images, output, BATCHES)
    return output


def test_every_image_has_its_row_and_a_bad_file_does_not_lose_the_rest(detector, images, tmp_path, capsys):
    summary = predict_files(detector, images, tmp_path, PredictionSettings(score=0.0))
    [error] = summary.errors
    reason = "not a readable JPEG or PNG image, it may be cut off: jpeg::Uncompress failed. Invalid JPEG data or crop"
    assert error == f"{images[3]}: {reason} window."
    assert sum(summary.counts.values()) == 70
    rows = read_rows(tmp_path)
    good = [path for path in images if path.name != "3-bad.jpg"]
    assert [row["file"] for row in rows] == [str(path) for path in good]
    assert [(row["width"], row["height"]) for row in rows] == [
        *((150, 120), (120, 150), (150, 120), (151, 121), (150, 120), (90, 200), (150, 120))
    ]
    for row, path in zip(rows, good, strict=True):
        expected = detector(path)
        np.testing.assert_allclose([one["score"] for one in row["detections"]], expected.scores, atol=1e-5)
        np.testing.assert_allclose([one["box"] for one in row["detections"]], expected.boxes, atol=1e-3)
        assert [one["category"] for one in row["detections"]] == list(expected.categories)
    table = (tmp_path / "errors.csv").read_text().splitlines()
    assert list(csv.reader(table)) == [
        ["file", "error"],
        [str(images[3]), error],
    ]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{n}.jpg" for n in range(7)} | {"predictions.json", "errors.csv", "settings.json"}
    first = detector(images[0])
    pixels = np.asarray(Image.open(images[0]))
    drawn = draw_detections(pixels, first, score_threshold=0.0)
    assert (np.abs(np.asarray(Image.open(tmp_path / "0.jpg")).astype(int) - drawn) > 40).mean() < 0.01
    assert "0.jpg: " in capsys.readouterr().out


def test_a_batch_gives_what_one_image_at_a_time_gives(detector, images, tmp_path):
    for batch_size in (1, 3):
        predict_files(detector, images, tmp_path / str(batch_size), replace(BATCHES, batch_size=batch_size))
    assert_rows_agree(read_rows(tmp_path / "3"), read_rows(tmp_path / "1"))


def test_only_images_of_one_canvas_go_through_the_network_together(images):
    batches = []

    class Spy:
        size_limits, target = FakeDetector.size_limits, FakeDetector.target

        def detect_files(self, files):
            batches.append(len(files))
            return ["found"] * len(files)

    sizes = [(120, 150), (150, 120), (121, 151), (120, 150), (120, 150), (60, 150)]
    files = [ImageFile(item=Item(n, images[0], str(n)), data=b"", size=size) for n, size in enumerate(sizes)]
    found = list(detect_images(Spy(), files, 3))
    assert batches == [3, 1, 1, 1]
    assert sorted(image.item.index for image, _ in found) == list(range(6))


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1088)),  # 800 x 1066.67
        ((500, 2000), (800, 1333), (352, 1344)),  # 333.25 x 1333
        ((1, 1000), (96, 128), (32, 128)),
        ((96, 96), (96, 128), (96, 96)),
    ],
)
def test_the_canvas_is_the_resized_size_rounded_up_to_32(size, limits, expected):
    assert _canvas(size, *limits, "cpu") == expected
    assert _canvas(size[::-1], *limits, "cpu") == expected[::-1]


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1344)), ((500, 2000), (800, 1344)), ((70, 70), (800, 800))]
)
def test_for_a_gpu_the_canvas_is_one_of_the_trainings(size, expected):
    assert _canvas(size, 800, 1333, "gpu") == expected
    assert _canvas(size[::-1], 800, 1333, "gpu") == expected[::-1]


def test_a_killed_run_goes_on_to_the_same_result(images, whole, tmp_path, monkeypatch):
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from inference.prediction.helpers import FakeDetector
from dh_keras.inference.prediction import folder, predict_files as runner, sources
sources.CHUNK_IMAGES = 2
write = folder.PredictionFolder.write_part
def write_and_die(self, number, rows):
    if number == 2:
        (self.path / "parts" / ".partial-000002.jsonl").write_text('{{"index": 4, "fi')
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, rows)
folder.PredictionFolder.write_part = write_and_die
settings = folder.PredictionSettings(score=0.0, batch_size=3, pictures=False)
paths = [Path(name) for name in {[str(path) for path in images]!r}]
runner.predict_files(FakeDetector(), paths, {str(tmp_path / "out")!r}, settings)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr[-2000:]
    parts = sorted(path.name for path in (tmp_path / "out" / "parts").glob("[0-9]*"))
    assert parts == ["000000.jsonl", "000001.jsonl"]
    assert not (tmp_path / "out" / "predictions.json").exists()
    monkeypatch.setattr("dh_keras.inference.prediction.sources.CHUNK_IMAGES", 2)
    written = []
    write = PredictionFolder.write_part
    monkeypatch.setattr(
        PredictionFolder, "write_part", lambda self, number, rows: (written.append(number), write(self, number, rows))
    )
    with pytest.raises(DataError, match=r"exists already and is not overwritten; .* or --resume to go on"):
        predict_files(FakeDetector(), images, tmp_path / "out", BATCHES)
    summary = predict_files(FakeDetector(), images, tmp_path / "out", BATCHES, resume=True)
    assert written == [2, 3]
    assert len(summary.errors) == 1
    for name in ("predictions.json", "errors.csv", "settings.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "out" / "parts").exists()


@pytest.mark.parametrize(("limit", "file"), [(64, "settings.json"), (3000, "0.jpg")])
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_when_it_is_not(images, tmp_path, small_files, limit, file):
    settings = replace(BATCHES, pictures=True)
    small_files(limit)
    with pytest.raises(WriteError) as error:
        predict_files(FakeDetector(), images[:2], tmp_path / "out", settings)
    assert str(error.value).startswith(f"{tmp_path}/out/{file}: cannot be written: File too large; ")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"settings.json"}
    small_files(-1)
    predict_files(FakeDetector(), images[:2], tmp_path / "out", settings, resume=True)
    predict_files(FakeDetector(), images[:2], tmp_path / "whole", settings)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "whole")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("out", "whole")]
    assert names[0] == names[1]


def test_a_finished_run_is_left_alone_and_says_its_faults_again(images, whole):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dh_keras.inference.prediction.sources.CHUNK_IMAGES", 2)
        summary = predict_files(FakeDetector(), images, whole, BATCHES, resume=True)
    assert len(summary.errors) == 1
    assert str(summary) == "all files were finished before"
    assert {path: path.read_bytes() for path in whole.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"score": 0.5}, r"another value of --score \(0\.0, not 0\.5\)"),
        ({"batch_size": 2}, r"--batch-size \(3, not 2\)"),
        ({"format": "csv"}, r"--format \(json, not csv\)"),
        ({"shard": Shard(1, 2)}, r"--shard \(1/1, not 1/2\)"),
        ({"pictures": True}, r"pictures \(False, not True\)"),
        ({"overrides": ("model.nms_iou=0.3",)}, r"the overrides \(\[\], not \['model\.nms_iou=0\.3'\]\)"),
        ({"files": slice(0, 3)}, r"the number of files \(8, not 3\)"),
        ({"files": slice(None, None, -1)}, r"the files or their order \(8, now with other content\)"),
    ],
)
def test_going_on_with_other_settings_is_refused_by_name(images, whole, change, expected):
    paths = images[change.pop("files", slice(None))]
    with pytest.raises(DataError, match=expected):
        predict_files(FakeDetector(), paths, whole, replace(BATCHES, **change), resume=True)


def test_going_on_with_another_model_or_in_another_folder_is_refused(images, tiny_run, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.yaml", "classes.json", "best.weights.h5"):
        (model / name).write_bytes((tiny_run / name).read_bytes())
    settings = replace(BATCHES, model=model)
    predict_files(FakeDetector(), images[:1], tmp_path / "out", settings, resume=True)  # begins where there is nothing
    with open(model / "best.weights.h5", "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(DataError, match=r"the model \(.*model, now with other content\)"):
        predict_files(FakeDetector(), images[:1], tmp_path / "out", settings, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(DataError, match=r"other: not a folder that dh-keras predict began"):
        predict_files(FakeDetector(), images[:1], tmp_path / "other", BATCHES, resume=True)


def test_merged_shards_are_what_one_process_writes(images, tmp_path):
    predict_files(FakeDetector(), images, tmp_path / "whole", BATCHES)
    folders = [tmp_path / f"shard-{number}" for number in (3, 1, 2)]
    for folder in folders:
        shard = Shard(int(folder.name[-1]), 3)
        summary = predict_files(
            FakeDetector(), images, folder, replace(BATCHES, shard=shard, pictures=shard.number == 1)
        )
        assert len(summary.errors) == (shard.number == 1)  # 3-bad.jpg is the fourth file
        assert not (folder / "predictions.json").exists()
    merge_predictions(folders, tmp_path / "merged")
    for name in ("predictions.json", "errors.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in folders[1].glob("*.jpg")) == ["0.jpg", "5.jpg"]
    for shards, expected in {
        (0, 1): r"shards are missing: 2/3; give the folders of all 3",
        (0, 1, 2, 1): r"shard-1: is shard 1/3, which .*shard-1 is as well",
    }.items():
        with pytest.raises(DataError, match=expected):
            merge_predictions([folders[index] for index in shards], tmp_path / "no")
    (folders[0] / "parts" / "000000.jsonl").unlink()
    with pytest.raises(DataError, match=r"shard-3: shard 3/3 is not finished, 1 of 1 parts are missing"):
        merge_predictions(folders, tmp_path / "no")
    settings = json.loads((folders[2] / "settings.json").read_text())
    (folders[2] / "settings.json").write_text(json.dumps({**settings, "score": 0.25}))
    with pytest.raises(DataError, match=r"shard-2: differs from .*shard-3 in --score \(0\.0, not 0\.25\)"):
        merge_predictions(folders, tmp_path / "no")
    with pytest.raises(DataError, match=r"whole: is no shard but a whole prediction"):
        merge_predictions([tmp_path / "whole"], tmp_path / "no")
    with pytest.raises(DataError, match=r"merged: exists already and is not overwritten"):
        merge_predictions(folders, tmp_path / "merged")
    assert not (tmp_path / "no").exists()


def test_an_empty_shard_is_finished_and_merges(images, tmp_path):
    folders = [tmp_path / str(number) for number in (1, 2)]
    for number, folder in enumerate(folders, start=1):
        predict_files(FakeDetector(), images[:1], folder, replace(BATCHES, shard=Shard(number, 2)))
    merge_predictions(folders, tmp_path / "merged")
    assert [row["file"] for row in read_rows(tmp_path / "merged")] == [str(images[0])]


def test_an_interrupted_picture_leaves_no_part(images, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("dh_keras.inference.prediction.predict_files.save_pictures", fail)
    with contextlib.suppress(OSError):
        predict_files(FakeDetector(), images[:2], tmp_path / "out", replace(BATCHES, pictures=True))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]
    monkeypatch.undo()
    predict_files(FakeDetector(), images[:2], tmp_path / "out", replace(BATCHES, pictures=True), resume=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpg")) == ["0.jpg", "1.jpg"]


def test_a_name_that_is_no_utf8_or_too_long_loses_no_result(images, tmp_path, capsys):
    folder, output = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    data = images[0].read_bytes()
    written = [os.fsdecode(b"caf\xe9.jpg"), "b" * 245 + ".jpg", "b" * 245 + ".jpeg", "line\nbreak.jpg", "good.jpg"]
    for name in written:
        (folder / name).write_bytes(data)
    (folder / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"no image")
    (folder / os.fsdecode(b"bad\xfe.avi")).write_bytes(b"no video")
    paths = [*list_sources([folder]), folder / os.fsdecode(b"bad\xfe.avi")]
    for format in ("json", "csv", "coco"):
        summary = predict_files(FakeDetector(), paths, output / format, PredictionSettings(format=format))
        assert (summary.images, len(summary.errors)) == (5, 2)
        assert "bad\\udcff.jpg: not a readable JPEG or PNG" in summary.errors[0]
        assert "bad\\udcfe.avi: OpenCV opens videos whose path is UTF-8 only; rename it" in summary.errors[1]
    assert sorted(Path(row["file"]).name for row in read_rows(output / "json")) == sorted(written)
    pictures = sorted(path.name for path in (output / "json").glob("*.jpg"))
    assert pictures == ["b" * 110 + "-2.jpg", "b" * 110 + ".jpg", "caf\ufffd.jpg", "good.jpg", "line\nbreak.jpg"]
    shown = capsys.readouterr().out
    assert "caf\\udce9.jpg: " in shown
    assert "line\\nbreak.jpg: " in shown
    again = predict_files(FakeDetector(), paths, output / "json", PredictionSettings(), resume=True)
    assert again.finished_before
    assert again.errors[0].endswith(summary.errors[0].rpartition("/")[2])

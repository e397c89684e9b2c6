"""Crops of what was found, and the classes that count."""

import json

import numpy as np
import pytest
from inference.color_detector import CATEGORIES, ColorDetector, scene, write_scene
from inference.prediction.helpers import write_video
from PIL import Image

from dh_keras.commands import predict
from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector
from dh_keras.inference.prediction.crops import class_folders, cut_out, write_crops
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.merge import merge_predictions
from dh_keras.inference.prediction.predict_files import predict_files
from dh_keras.inference.prediction.sources import Shard
from dh_keras.run.classes import Category, find_classes

CROPS = PredictionSettings(score=0.0, pictures=False, crops=True)


def read(path):
    return np.asarray(Image.open(path))


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*g"))


@pytest.fixture
def photographs(tmp_path):
    """A landscape with three objects and a portrait with none; and the pixels of the first."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = write_scene(folder / "a.png", 70, 130, (0, 10, 20, 25, 40), (1, 30, 100, 40, 115), (0, 50, 5, 60, 15))
    write_scene(folder / "b.png", 90, 40)
    return folder, pixels


def test_every_object_is_a_picture_in_the_folder_of_its_class(photographs, tmp_path):
    folder, pixels = photographs
    predict_files(ColorDetector(), [folder / "a.png", folder / "b.png"], tmp_path / "out", CROPS)
    crops = tmp_path / "out" / "crops"
    assert files_below(tmp_path / "out") == [
        *("crops/platelet/a-2.png", "crops/red cell/a-1.png", "crops/red cell/a-3.png")
    ]
    np.testing.assert_array_equal(read(crops / "red cell" / "a-1.png"), pixels[10:25, 20:40])
    np.testing.assert_array_equal(read(crops / "platelet" / "a-2.png"), pixels[30:40, 100:115])
    np.testing.assert_array_equal(read(crops / "red cell" / "a-3.png"), pixels[50:60, 5:15])


def test_crops_of_a_film_are_in_a_folder_of_the_film(tmp_path):
    frames = [scene(96, 128, (0, 16, 16 + 8 * n, 48, 48 + 8 * n)) for n in range(3)]
    write_video(tmp_path / "film.avi", frames)
    predict_files(ColorDetector(), [tmp_path / "film.avi"], tmp_path / "out", CROPS)
    names = [f"crops/red cell/film/{n:06d}-1.png" for n in range(3)]
    assert files_below(tmp_path / "out") == names
    for name in names:
        crop = read(tmp_path / "out" / name)
        np.testing.assert_allclose(crop.shape, (32, 32, 3), atol=2)
        np.testing.assert_allclose(crop.mean((0, 1)), (200, 0, 0), atol=25)


def test_a_crop_has_every_pixel_that_a_box_touches_and_at_least_one():
    image = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    boxes = np.float32([[1.2, 2.9, 3.01, 5], [-4, -2, 100, 100], [2, 3, 2, 3], [6, 9, 6, 9]])
    expected = [image[1:4, 2:5], image, image[2:3, 3:4], image[5:6, 8:9]]
    for crop, pixels in zip(cut_out(image, boxes), expected, strict=True):
        np.testing.assert_array_equal(crop, pixels)


def test_folders_of_classes_are_names_that_a_file_system_takes():
    names = ["car", "Car", "and/or", "..", "", ".hidden", "a\nb", "x" * 300, "x" * 301]
    folders = class_folders([Category(number, name) for number, name in enumerate(names)])
    assert folders[:7] == ["car", "Car-2", "and_or", "_..", "_", "_.hidden", "a\\nb"]
    assert len({name.casefold() for name in folders}) == len(names)
    assert max(map(len, folders)) < 120


def test_no_name_of_a_class_leads_out_of_the_folder(tmp_path):
    known = (Category(1, "../../up"), Category(2, "/"))
    boxes, scores = np.float32([[0, 0, 2, 3], [1, 1, 4, 4]]), np.float32([0.9, 0.8])
    found = ImageDetections(boxes=boxes, scores=scores, classes=np.array([0, 1]), known=known)
    write_crops(scene(6, 9), found, tmp_path / "a" / "out", "photo-")
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert files == ["a/out/crops/_.._.._up/photo-1.png", "a/out/crops/_/photo-2.png"]


def test_only_the_classes_that_count_are_written_and_drawn(photographs, tmp_path):
    folder, _ = photographs
    some = {"score": 0.0, "crops": True, "classes": ("platelet",)}
    predict_files(ColorDetector(), [folder / "a.png"], tmp_path / "some", PredictionSettings(**some))
    predict_files(ColorDetector(), [folder / "a.png"], tmp_path / "all", PredictionSettings(score=0.0))
    [row] = json.loads((tmp_path / "some" / "predictions.json").read_text())
    assert [(one["category"], one["box"]) for one in row["detections"]] == [("platelet", [30, 100, 40, 115])]
    assert files_below(tmp_path / "some") == ["a.jpg", "crops/platelet/a-1.png"]
    drawn, everything = read(tmp_path / "some" / "a.jpg"), read(tmp_path / "all" / "a.jpg")
    np.testing.assert_array_equal(drawn[:, 450:], everything[:, 450:])  # in the colour that it has among all
    assert (drawn[:, :300] != everything[:, :300]).any()


def test_going_on_needs_the_same_classes_and_crops(photographs, tmp_path):
    folder, _ = photographs
    files = [folder / "a.png"]
    predict_files(ColorDetector(), files, tmp_path / "out", PredictionSettings(pictures=False))
    stored = json.loads((tmp_path / "out" / "settings.json").read_text())
    for key in ("crops", "classes"):  # a folder that was begun before there were these
        assert stored.pop(key) is None
    (tmp_path / "out" / "settings.json").write_text(json.dumps(stored))
    (tmp_path / "out" / "predictions.json").unlink()
    predict_files(ColorDetector(), files, tmp_path / "out", PredictionSettings(pictures=False), resume=True)
    for other, name in (({"crops": True}, "--save-crops"), ({"classes": ("platelet",)}, "--classes")):
        settings = PredictionSettings(pictures=False, **other)
        with pytest.raises(DataError, match=f"was begun with another value of {name}"):
            predict_files(ColorDetector(), files, tmp_path / "out", settings, resume=True)


def test_shards_merge_whose_crops_were_saved_or_not(photographs, tmp_path):
    folder, _ = photographs
    files, folders = sorted(folder.iterdir()), [tmp_path / "1", tmp_path / "2"]
    for number, crops in ((1, True), (2, False)):
        settings = PredictionSettings(pictures=False, crops=crops, shard=Shard(number, 2))
        predict_files(ColorDetector(), files, folders[number - 1], settings)
    assert merge_predictions(folders, tmp_path / "merged").images == 2


def test_the_command_takes_names_of_classes(photographs, tmp_path, monkeypatch, capsys):
    folder, pixels = photographs
    monkeypatch.setattr(Detector, "load", lambda path, overrides: ColorDetector())
    words = [str(tmp_path), str(folder), "--no-pictures", "--score", "0.1"]
    predict.main([*words, "--output", str(tmp_path / "out"), "--classes", "red cell", "--save-crops"])
    assert files_below(tmp_path / "out") == ["crops/red cell/a-1.png", "crops/red cell/a-2.png"]
    np.testing.assert_array_equal(read(tmp_path / "out/crops/red cell/a-2.png"), pixels[50:60, 5:15])
    assert "score above 0.10, only red cell" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        predict.main([*words, "--output", str(tmp_path / "no"), "--classes", "platelet,Red Cel"])
    assert capsys.readouterr().err == "error: --classes: there is no class 'Red Cel'; did you mean 'red cell'?\n"
    assert not (tmp_path / "no").exists()


def test_names_of_classes_may_have_commas_in_them():
    known = [*CATEGORIES, Category(9, "cup, mug")]
    assert find_classes('"cup, mug",platelet', known) == ("cup, mug", "platelet")
    assert find_classes("platelet, red cell", known) == ("platelet", "red cell")
    for text, near in (("PLATELETS", "platelet"), ("zzz", ""), ("platelet,", "")):
        with pytest.raises(DataError, match=f"^there is no class '.*'; did you mean '{near}"):
            find_classes(text, known)
    with pytest.raises(DataError, match=r"^expected names of classes with commas between them"):
        find_classes("", known)

"""The page of recipes: its code runs from top to bottom, and finds what is in the pictures."""

from pathlib import Path

import numpy as np
import pytest
from inference.color_detector import ColorDetector, scene
from PIL import Image

from dh_keras.data.formats.coco import load_coco
from dh_keras.inference.detector import Detector
from dh_keras.inference.prediction.video import VideoReader, VideoWriter

TRACKING = "from trackers import"
# Red cells left and right in the photograph; one of 40 pixels at a border of slices of 640 in the large one.
PHOTO = (480, 640, (0, 100, 50, 160, 130), (1, 300, 200, 340, 240), (0, 200, 500, 260, 580))
LARGE = (700, 1300, (0, 620, 600, 660, 640), (1, 20, 1200, 60, 1260))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with all files that the page names, which is the working directory; and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "load", lambda path: ColorDetector())
    for name, objects in {"photo": PHOTO, "large": LARGE}.items():
        Image.fromarray(scene(*objects)).save(f"{name}.jpg", quality=100, subsampling=0)
    (tmp_path / "photos").mkdir()
    Image.fromarray(scene(*PHOTO)).save("photos/a.png")
    Image.fromarray(scene(90, 40)).save("photos/b.png")
    film = VideoWriter(tmp_path / "film.mp4", 10)
    for number in range(12):  # one goes to the right, across the line, and one stays
        film.write(scene(480, 640, (0, 200, 100 + 40 * number, 280, 180 + 40 * number), (1, 50, 50, 90, 110)))
    film.close()
    return tmp_path


@pytest.fixture
def run(site, python_blocks):
    """Return a function that runs the blocks of the page that have one of some words, and returns what they name."""

    def run(*words):
        names = {}
        for block in python_blocks("recipes.md"):
            if any(word in block for word in ("Detector.load", "import supervision", *words)):
                exec(block, names)
        return names

    return run


def test_every_recipe_is_run_here(python_blocks):
    words = ("Detector.load", "import supervision", "on_error", "import pandas", "PolygonZone", "import cv2", TRACKING)
    assert [sum(word in block for word in (*words, "as_pascal_voc")) for block in python_blocks("recipes.md")] == [
        1
    ] * 8


def test_photographs_by_the_thousand_are_drawn_and_the_bad_one_is_told(site, run):
    (site / "photos" / "c.jpg").write_bytes(b"no image")
    failed = run("on_error")["failed"]
    assert [str(error).partition(":")[0] for error in failed] == ["photos/c.jpg"]
    assert sorted(path.name for path in (site / "drawn").iterdir()) == ["a.png", "photo.png"]


def test_the_table_has_a_row_for_each_object(run, capsys):
    table = run("import pandas")["table"]
    assert sorted(table.drop(columns=["score", "category_id"]).itertuples(index=False, name=None)) == [
        ("a.png", 100, 50, 160, 130, "red cell"),
        ("a.png", 200, 500, 260, 580, "red cell"),
        ("a.png", 300, 200, 340, 240, "platelet"),
    ]
    assert "red cell    2" in capsys.readouterr().out


def test_slices_find_each_object_once_in_its_place(run):
    names = run()
    order = np.argsort(names["found"].xyxy[:, 0])
    np.testing.assert_allclose(names["found"].xyxy[order], [[600, 620, 640, 660], [1200, 20, 1260, 60]], atol=1)
    assert names["found"]["class_name"][order].tolist() == ["red cell", "platelet"]
    drawn = np.asarray(Image.open("large_drawn.png"))
    assert drawn.shape == (700, 1300, 3)
    np.testing.assert_allclose(drawn[640, 620], (200, 0, 0), atol=5)  # red is still red


def test_a_zone_counts_what_is_in_it(run, capsys):
    run("PolygonZone")
    assert "{'platelet': 1, 'red cell': 1}" in capsys.readouterr().out


def test_frames_of_a_camera_are_detected_in(run):
    assert run("import cv2")["seen"] == 24


def test_drafts_of_labels_are_annotations_that_training_takes(run):
    run("as_pascal_voc")
    labels = load_coco("labels", "photos")
    names = [category.name for category in labels.categories]
    found = {Path(path).name: index for index, path in enumerate(labels.paths)}
    boxes = labels.boxes_of(found["a.png"])
    classes = [names[index] for index in labels.classes_of(found["a.png"])]
    expected = {
        (0, 100, 50, 160, 130): "red cell",
        (1, 300, 200, 340, 240): "platelet",
        (0, 200, 500, 260, 580): "red cell",
    }
    for (_, *box), name in expected.items():
        near = np.abs(boxes - box).max(axis=1) <= 1
        assert [one for one, is_near in zip(classes, near, strict=True) if is_near] == [name]
    assert len(boxes) == 3


def test_the_recipe_of_tracking_follows_and_counts(site, run):
    pytest.importorskip("trackers", reason="pip install --no-deps trackers")
    names = run(TRACKING)
    assert (names["line"].in_count, names["line"].out_count) == (1, 0)
    assert VideoReader(site / "tracked.mp4").count == 12

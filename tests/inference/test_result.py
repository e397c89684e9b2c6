"""What is made of a result: orders of boxes, pictures, crops, JSON and the supervision library."""

import io
import json
import sys

import numpy as np
import pytest
import supervision
import tensorflow as tf
from inference.color_detector import CATEGORIES, ColorDetector, scene, write_scene
from PIL import Image

from dh_keras.errors import DataError
from dh_keras.inference.drawing import draw_detections
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.predict_files import predict_files
from dh_keras.run.classes import Category

# Two red cells and a platelet; scores 0.9, 0.8 and 0.7 by their areas of 300, 150 and 100 pixels.
OBJECTS = ((0, 10, 20, 25, 40), (1, 30, 100, 40, 115), (0, 50, 5, 60, 15))
BOXES = [box for _, *box in OBJECTS]
SCENE = (70, 130, *OBJECTS)


@pytest.fixture
def detector():
    return ColorDetector()


@pytest.fixture
def path(tmp_path):
    write_scene(tmp_path / "photo.png", *SCENE)
    return tmp_path / "photo.png"


def test_boxes_have_two_orders(detector, path):
    result = detector(path)
    assert result.boxes.tolist() == BOXES
    assert result.boxes_xyxy.tolist() == [[20, 10, 40, 25], [100, 30, 115, 40], [5, 50, 15, 60]]
    assert result.boxes_xyxy.dtype == np.float32
    assert result.size == (70, 130)
    assert result.categories == ("red cell", "platelet", "red cell")
    empty = detector(scene(40, 30))
    assert (empty.boxes.shape, empty.boxes_xyxy.shape, empty.size) == ((0, 4), (0, 4), (40, 30))


def test_without_a_score_the_one_of_the_class_counts(path):
    result = ColorDetector(best_scores=(0.85, 0.6))(path)
    assert result.above().scores.tolist() == pytest.approx([0.9, 0.8])
    assert result.above(0.75).scores.tolist() == pytest.approx([0.9, 0.8])
    assert result.above(0.1).above().scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    platelets = (CATEGORIES[1], Category(9, "new"))
    assert result.among(platelets).above().categories == ("platelet",)
    assert result.among(platelets).shown_above == (0.6, 0.5)
    assert result.of_classes(["red cell"]).above().scores.tolist() == pytest.approx([0.9])
    assert result.of_classes([]) is result


def test_the_picture_has_what_is_shown(path):
    result = ColorDetector(best_scores=(0.85, 0.6))(path)
    pixels = scene(*SCENE)
    np.testing.assert_array_equal(result.plot(), draw_detections(pixels, result, score_threshold=(0.85, 0.6)))
    np.testing.assert_array_equal(result.above(0.1).plot(), draw_detections(pixels, result, score_threshold=0.1))
    assert (result.above(0.1).plot() != result.plot()).any()
    assert result.plot().shape == (350, 650, 3)  # five times as large
    np.testing.assert_array_equal(result.image, pixels)
    frame = scene(700, 1300, (0, 100, 200, 250, 400))
    drawn = ColorDetector()(frame).plot()
    assert drawn.shape == frame.shape
    np.testing.assert_array_equal(frame, scene(700, 1300, (0, 100, 200, 250, 400)))
    changed = np.argwhere((drawn != frame).any(-1))
    assert changed[:, 1].min() == 200
    assert changed[:, 1].max() == 399
    assert changed[:, 0].max() == 249  # the label stands above the box


def test_a_picture_is_saved_once(detector, path, tmp_path):
    result = detector(path)
    assert result.save(tmp_path / "new" / "drawn.png") == tmp_path / "new" / "drawn.png"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "drawn.png")), result.plot())
    result.save(str(tmp_path / "drawn.JPG"))
    assert Image.open(tmp_path / "drawn.JPG").format == "JPEG"
    with pytest.raises(DataError, match=r"drawn\.png: exists already and is not overwritten; choose another name"):
        detector(scene(70, 130)).save(tmp_path / "new" / "drawn.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "drawn.png")), result.plot())
    for name in ("drawn", "drawn.pdf"):
        with pytest.raises(DataError, match=rf"{name}: expected a name that ends with \.png, \.jpg"):
            result.save(tmp_path / name)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["drawn.JPG", "new", "photo.png"]


def test_crops_are_the_pixels_that_the_boxes_touch(detector, path):
    result, pixels = detector(path), scene(*SCENE)
    for crop, (y1, x1, y2, x2) in zip(result.crops(), BOXES, strict=True):
        np.testing.assert_array_equal(crop, pixels[y1:y2, x1:x2])
    assert detector(scene(40, 30)).crops() == []


def test_the_pixels_of_a_file_are_read_again_and_those_of_anything_else_kept(detector, path):
    pixels, data = scene(*SCENE), path.read_bytes()
    results = [detector(one) for one in (path, str(path), data, io.BytesIO(data), Image.open(path), pixels)]
    assert [result.path for result in results] == [path, path, None, None, None, None]
    for result in results:
        np.testing.assert_array_equal(result.image, pixels)
        assert len(repr(result)) < 1000
    assert not any(isinstance(value, bytes | np.ndarray) and len(value) > 9 for value in vars(results[0]).values())
    write_scene(path, 130, 70)
    with pytest.raises(DataError, match=r"photo\.png: is another image than the one that was detected in"):
        results[0].plot()
    np.testing.assert_array_equal(results[3].image, pixels)
    path.unlink()
    with pytest.raises(DataError, match=r"photo\.png: cannot be read: No such file"):
        results[1].crops()


def test_a_turned_photograph_is_upright_in_all_that_is_made_of_it(detector, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(scene(*SCENE))
    Image.fromarray(stored).save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    result = detector(tmp_path / "turned.jpg")
    assert result.size == (70, 130)
    np.testing.assert_allclose(result.boxes, BOXES, atol=1)
    assert result.crops()[0].shape == (15, 20, 3)
    np.testing.assert_allclose(result.crops()[0].mean((0, 1)), (200, 0, 0), atol=12)


def test_json_is_the_row_that_predict_writes(detector, path, tmp_path):
    predict_files(detector, [path], tmp_path / "out", PredictionSettings(score=0.0, pictures=False))
    [row] = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert json.loads(detector(path).to_json()) == row
    assert json.loads(detector(scene(40, 30)).to_json()) == {"file": None, "width": 30, "height": 40, "detections": []}
    assert "\n" not in detector(path).to_json()


def test_supervision_gets_what_it_makes_itself_of_the_same_boxes(detector, path):
    result = detector(path)
    given = result.to_supervision()
    shares = {  # the same as TensorFlow Hub's detectors give it
        "detection_boxes": tf.constant([[[y1 / 70, x1 / 130, y2 / 70, x2 / 130] for y1, x1, y2, x2 in BOXES]]),
        "detection_scores": tf.constant([[0.9, 0.8, 0.7]]),
        "detection_classes": tf.constant([[0.0, 1.0, 0.0]]),
    }
    expected = supervision.Detections.from_tensorflow(shares, resolution_wh=(130, 70))
    np.testing.assert_allclose(given.xyxy, expected.xyxy, atol=1e-3)
    np.testing.assert_allclose(given.confidence, expected.confidence, atol=1e-6)
    np.testing.assert_array_equal(given.class_id, expected.class_id)
    assert given["class_name"].tolist() == ["red cell", "platelet", "red cell"]
    platelets = given[given["class_name"] == "platelet"]
    assert platelets.xyxy.tolist() == [[100, 30, 115, 40]]
    assert given.area.tolist() == [300, 150, 100]


def test_supervision_takes_an_image_without_detections(detector, path):
    nothing, something = detector(scene(40, 30)).to_supervision(), detector(path).to_supervision()
    assert nothing.is_empty()
    assert nothing["class_name"].tolist() == []
    for merged in (supervision.Detections.merge([nothing, something]), something.with_nms(0.5)):
        assert merged == something
    assert supervision.Detections.merge([nothing, nothing]).is_empty()


def test_a_missing_supervision_is_one_line(detector, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DataError, match=r"^to_supervision needs supervision; pip install [^\n]+$"):
        detector(path).to_supervision()

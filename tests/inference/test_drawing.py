"""Drawn pictures: lines where the boxes are, labels inside the picture, and a word when nothing was found."""

import numpy as np
import pytest

from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference import drawing as visualize
from dh_keras.inference.drawing import class_colors, draw_boxes, draw_detections, side_by_side
from dh_keras.run.classes import Category

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def found(boxes, scores, classes, names):
    """Detections with these class indices among classes of these names."""
    known = tuple(Category(10 + index, name) for index, name in enumerate(names))
    return ImageDetections(boxes=boxes, scores=np.array(scores), classes=np.array(classes, int), known=known)


def where(picture, colour):
    """Return the rows and columns whose pixels have exactly this colour."""
    return np.nonzero((picture == np.array(colour, np.uint8)).all(-1))


def extent(picture, colour):
    rows, columns = where(picture, colour)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def test_an_outline_ends_exactly_where_the_box_ends():
    picture = draw_boxes(grey(480, 640), np.array([[100, 50, 180, 300]]), [""], colors=[RED])
    assert picture.shape == (480, 640, 3)
    assert extent(picture, RED) == (100, 50, 180, 300)
    assert (picture[102:178, 52:298] == 128).all()
    assert (picture[99] == 128).all()
    assert (picture[180] == 128).all()


def test_a_small_picture_is_enlarged_by_a_whole_factor_together_with_its_boxes():
    picture = draw_boxes(grey(60, 200), np.array([[10, 20, 30, 90]]), [""], colors=[RED])
    assert picture.shape == (240, 800, 3)
    assert extent(picture, RED) == (40, 80, 120, 360)


def test_the_input_is_not_changed():
    image, boxes = grey(480, 640), np.array([[100.0, 50, 180, 300]])
    draw_boxes(image, boxes, ["cell"])
    assert (image == 128).all()
    assert boxes.tolist() == [[100.0, 50, 180, 300]]


def test_a_label_is_a_strip_of_the_class_colour_above_the_box_with_text_in_it():
    picture = draw_boxes(grey(480, 640), np.array([[100, 50, 180, 300]]), ["cell 0.93"], colors=[RED])
    top, left, bottom, right = extent(picture, RED)
    assert (left, bottom, right) == (50, 180, 300)
    assert 80 <= top <= 87
    strip = picture[top:100, 50:150]
    assert len(where(strip, RED)[0]) > 500
    assert len(where(strip, (255, 255, 255))[0]) > 15


def test_text_is_dark_on_a_light_colour():
    picture = draw_boxes(grey(480, 640), np.array([[100, 50, 180, 300]]), ["cell"], colors=[(255, 230, 60)])
    assert len(where(picture[80:100], (0, 0, 0))[0]) > 10
    assert len(where(picture, (255, 255, 255))[0]) == 0


@pytest.mark.parametrize("box", [[0, 0, 479, 600], [0, 600, 480, 640], [460, 620, 480, 640], [-50, -80, 900, 900]])
def test_a_label_at_the_border_stays_whole(box):
    middle = draw_boxes(grey(480, 640), np.array([[200, 200, 300, 400]]), ["platelet 0.93"], colors=[RED])
    ink = len(where(middle, (255, 255, 255))[0])
    picture = draw_boxes(grey(480, 640), np.array([box]), ["platelet 0.93"], colors=[RED])
    assert len(where(picture, (255, 255, 255))[0]) == pytest.approx(ink, abs=0.2 * ink)


def test_labels_of_boxes_at_the_same_place_do_not_cover_each_other():
    boxes = np.array([[200, 200, 300, 400]] * 2)
    picture = draw_boxes(grey(480, 640), boxes, ["cell 0.93", "tube 0.71"], colors=[RED, BLUE])
    one = draw_boxes(grey(480, 640), boxes[:1], ["cell 0.93"], colors=[RED])
    assert len(where(picture, (255, 255, 255))[0]) > 1.6 * len(where(one, (255, 255, 255))[0])


def test_the_font_grows_with_the_picture():
    def strip_height(height, width):
        box = np.array([[height // 2, 10, height - 10, width - 10]])
        with_label = draw_boxes(grey(height, width), box, ["cell"], colors=[RED])
        without = draw_boxes(grey(height, width), box, [""], colors=[RED])
        return extent(without, RED)[0] - extent(with_label, RED)[0]

    assert 14 <= strip_height(480, 640) <= 24
    assert strip_height(1440, 1920) > 2 * strip_height(480, 640)


def test_a_label_wider_than_the_picture_is_cut():
    picture = draw_boxes(
        grey(640, 100), np.array([[300, 10, 400, 90]]), ["a very long category name " * 4], colors=[RED]
    )
    assert picture.shape == (640, 100, 3)
    assert extent(picture, RED)[1] >= 0
    assert visualize._fit("abc\n def", 13, 500)[0] == "abc def"
    cut = visualize._fit("a very long name", 13, 60)[0]
    assert cut.startswith("a v")
    assert cut.endswith("...")


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (2000, 4)])
def test_pictures_of_extreme_shape_are_drawn(size):
    picture = draw_boxes(grey(*size), np.array([[0, 0, *size]]), ["cell"], colors=[RED], note="note")
    factor = max(1, -(-640 // max(size)))
    assert picture.shape == (size[0] * factor, size[1] * factor, 3)


def test_only_detections_above_the_threshold_are_drawn_in_the_colour_of_their_class():
    boxes = np.array([[100, 50, 180, 300], [250, 50, 330, 300], [350, 400, 430, 600]], np.float32)
    colours = class_colors(3)
    detections = found(boxes, [0.9, 0.5, 0.51], [2, 0, 1], ("cell", "plate", "tube"))
    picture = draw_detections(grey(480, 640), detections, score_threshold=0.5)
    assert extent(picture, colours[2])[1:] == (50, 180, 300)
    assert extent(picture, colours[1])[1:] == (400, 430, 600)
    assert len(where(picture, colours[0])[0]) == 0


def test_the_best_detection_lies_on_top():
    boxes = np.array([[100, 50, 180, 300]] * 2, np.float32)
    picture = draw_detections(grey(480, 640), found(boxes, [0.9, 0.6], [0, 1], ("cell", "plate")))
    assert tuple(picture[140, 50]) == class_colors(2)[0]


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        ([0.12, 0.31, 0.2], "no detection above 0.50 (best: tube 0.31)"),
        ([], "no detection above 0.50"),
        ([0.12, 0.6, 0.2], None),
    ],
)
def test_a_note_says_what_was_best_when_nothing_passes(monkeypatch, scores, note):
    seen = {}
    monkeypatch.setattr(visualize, "draw_boxes", lambda image, boxes, labels, **rest: seen.update(rest, labels=labels))
    count = len(scores)
    draw_detections(grey(48, 64), found(np.ones((count, 4)), scores, [0, 1, 0][:count], ("cell", "tube")))
    assert seen["note"] == note
    assert seen["labels"] == (["tube 0.60"] if note is None else [])


def test_the_note_is_written_at_the_top():
    picture = draw_detections(grey(480, 640), found(np.zeros((0, 4)), [], [], ("cell",)))
    rows, _ = np.nonzero((picture != 128).any(-1))
    assert rows.min() == 0
    assert 12 <= rows.max() <= 30
    assert len(where(picture, (255, 255, 255))[0]) > 40


def test_classes_have_distinguishable_colours_that_do_not_depend_on_how_many_there_are():
    colours = np.array(class_colors(12), int)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 999 * np.eye(12)
    assert distances.min() > 60
    assert len(set(class_colors(80))) == 80
    assert class_colors(80)[:20] == class_colors(20)
    assert class_colors(3) == class_colors(12)[:3]
    assert all(0 <= channel <= 255 for colour in class_colors(80) for channel in colour)


def test_two_pictures_stand_side_by_side_under_their_titles():
    left, right = np.full((100, 150, 3), 10, np.uint8), np.full((80, 120, 3), 200, np.uint8)
    sheet = side_by_side(left, right, ("found", "truth"))
    strip = sheet.shape[0] - 100
    assert sheet.shape[1] == 150 + 8 + 120
    assert (sheet[strip:, :150] == 10).all()
    assert (sheet[strip : strip + 80, 158:] == 200).all()
    assert (sheet[strip + 80 :, 158:] == 255).all()
    for title in (sheet[:strip, :150], sheet[:strip, 158:]):
        assert len(where(title, (0, 0, 0))[0]) > 10


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), [[1]]]
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="image: expected"):
        draw_boxes(image, np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match="right: expected"):
        side_by_side(grey(4, 4), image, ("a", "b"))


def test_boxes_labels_and_scores_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match=r"got boxes \[1, 4\], 2 labels, 2 colours"):
        draw_boxes(grey(48, 64), np.zeros((1, 4)), ["a", "b"])
    with pytest.raises(ValueError, match="expected finite numbers"):
        draw_boxes(grey(48, 64), np.array([[0, 0, np.nan, 5]]), ["a"])
    with pytest.raises(ValueError, match="got 1 boxes, 2 scores, 1 classes"):
        draw_detections(grey(48, 64), found(np.zeros((1, 4)), [0, 0], [0], ("cell",)))

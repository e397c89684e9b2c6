"""What counts as found, missed, false and confused; precision, recall and F1: against hand counts and plain loops."""

import json

import numpy as np
import pytest

from dh_keras.data.formats.coco import load_coco
from dh_keras.evaluation.coco_metrics import evaluate_detections
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.drawing import side_by_side
from dh_keras.reports.confusion import confusion_counts, draw_confusion, normalise_rows
from dh_keras.reports.examples import CONFUSED, FALSE, FOUND, MISSED, draw_comparison, rank_images, write_ranked
from dh_keras.reports.matches import ClassMatches, ImageMatches, match_classes, match_images
from dh_keras.reports.pr_curves import class_rows, draw_pr_curves, precision_recall
from dh_keras.run.classes import Category

# Class indices 0, 1, 2 have the ids 2, 5, 11.
CATEGORIES = {2: "cell", 5: "plate", 11: "tube"}


def make_dataset(tmp_path, rows, images):
    """Build a dataset of 300x200 images from (image id, class index, box yxyx, iscrowd) rows."""
    ids = list(CATEGORIES)
    annotations = [
        {"id": i, "image_id": image, "category_id": ids[k], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": crowd}
        for i, (image, k, (y1, x1, y2, x2), crowd) in enumerate(rows, start=1)
    ]
    tree = {
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 300, "height": 200} for number in images],
        "annotations": annotations,
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(tree))
    return load_coco(path, tmp_path, check_images=False)


def detected(image_id, *rows):
    """Build detections of one image from (box yxyx, score, class index) rows."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    scores, classes = np.array([row[1] for row in rows]), np.array([row[2] for row in rows], np.int64)
    known = tuple(Category(number, name) for number, name in CATEGORIES.items())
    return ImageDetections(boxes=boxes, scores=scores, classes=classes, known=known, image_id=image_id)


@pytest.fixture
def by_hand(tmp_path):
    """Image 1: one of everything. Image 2: a crowd. Image 3: nothing there and nothing found."""
    rows = [
        (1, 0, [10, 10, 50, 50], 0),  # found twice
        (1, 1, [10, 100, 50, 140], 0),  # found as a tube
        (1, 2, [100, 10, 140, 50], 0),  # missed
        (1, 0, [100, 100, 140, 140], 0),  # found, though another class is surer
        (2, 0, [0, 0, 100, 100], 1),
        (2, 1, [120, 120, 160, 160], 0),  # found below the score only
    ]
    found = [
        detected(
            1,
            ([10, 10, 50, 48], 0.9, 0),
            ([12, 10, 50, 50], 0.8, 0),
            ([10, 100, 50, 141], 0.7, 2),
            ([100, 100, 140, 140], 0.95, 1),
            ([100, 100, 140, 139], 0.6, 0),
            ([150, 200, 190, 290], 0.99, 2),
        ),
        detected(2, ([10, 10, 40, 40], 0.9, 0), ([10, 10, 40, 40], 0.8, 1), ([120, 120, 160, 160], 0.5, 1)),
        detected(3),
    ]
    return make_dataset(tmp_path, rows, (1, 2, 3)), found


def test_the_confusion_matrix_is_the_one_counted_by_hand(by_hand):
    matches = match_images(*by_hand, score=0.5)
    expected = [
        [2, 0, 0, 0],  # cells: both found
        [0, 0, 1, 1],  # plates: one called a tube, one missed
        [0, 0, 0, 1],  # tube: missed
        [1, 2, 1, 0],  # the second cell; the plate on a found cell and the one in a crowd of cells; the lone tube
    ]
    counts = confusion_counts(matches, 3)
    assert counts.tolist() == expected
    assert normalise_rows(counts)[1].tolist() == [0, 0, 0.5, 0.5]
    assert normalise_rows(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]
    first, second, third = matches
    assert (first.missed_count, first.false_count, first.f1) == (2, 4, pytest.approx(2 * 2 / (4 + 6)))
    assert first.scores.tolist() == [0.99, 0.95, 0.9, 0.8, 0.7, 0.6]
    assert first.found.tolist() == [-1, -1, 0, -1, 1, 3]
    assert first.correct.tolist() == [False, False, True, False, False, True]
    assert first.confused.tolist() == [False, False, False, False, True, False]
    assert first.finder.tolist() == [2, 4, -1, 5]
    assert (len(second.gt_boxes), len(second.boxes), second.f1) == (1, 1, 0.0)
    assert third.f1 is None


def test_a_lower_score_lets_more_detections_in(by_hand):
    counts = confusion_counts(match_images(*by_hand, score=0.49), 3)
    assert counts[1].tolist() == [0, 1, 1, 0]


def random_case(tmp_path):
    rng = np.random.default_rng(5)
    rows, found = [], []
    for image in range(1, 31):
        truth = []
        for _ in range(rng.integers(0, 9)):
            h, w = rng.uniform(15, 60, 2)
            y, x = rng.uniform(0, 200 - h), rng.uniform(0, 300 - w)
            truth.append((image, int(rng.integers(3)), [y, x, y + h, x + w], 0))
        rows += truth
        guesses = []
        for _, k, box, _ in truth:
            shifted = np.array(box) + rng.normal(0, 2, 4)
            shifted[2:] = np.maximum(shifted[2:], shifted[:2] + 3)
            guesses.append((shifted, rng.uniform(0, 1), k if rng.random() < 0.8 else int(rng.integers(3))))
            if rng.random() < 0.3:
                guesses.append((shifted + 2, rng.uniform(0, 1), k))
        found.append(detected(image, *guesses))
    return make_dataset(tmp_path, rows, range(1, 31)), found


def iou(one, other):
    height = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    width = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return height * width / (area - height * width)


def loop_correct(dataset, found, class_index, least, score):
    """Count right detections of a class above a score with plain loops."""
    right = total = 0
    for index, entry in enumerate(found):
        free = [
            box for box, k in zip(dataset.boxes_of(index), dataset.classes_of(index), strict=True) if k == class_index
        ]
        rows = sorted(
            (-s, i) for i, (s, k) in enumerate(zip(entry.scores, entry.classes, strict=True)) if k == class_index
        )
        for negative, i in rows:
            if -negative <= score:
                continue
            total += 1
            ious = [iou(entry.boxes[i], box) for box in free]
            if ious and max(ious) >= least:
                right += 1
                free.pop(int(np.argmax(ious)))
    return right, total


def test_matches_curves_and_confusions_agree_with_plain_loops_and_with_ap(tmp_path):
    dataset, found = random_case(tmp_path)
    metrics = evaluate_detections(dataset, found)
    for least, key in ((0.5, "AP50"), (0.75, "AP75")):
        for k, of_class in enumerate(match_classes(dataset, found, iou=least, max_detections=100)):
            curve = precision_recall(of_class)
            boxes = int(np.sum(dataset.classes == k))
            assert of_class.boxes == boxes
            for score in (0.0, 0.2, 0.5, 0.8):
                right, total = loop_correct(dataset, found, k, least, score)
                last = np.flatnonzero(curve.scores > score)[-1]
                assert curve.precision[last] == pytest.approx(right / total)
                assert curve.recall[last] == pytest.approx(right / boxes)
            # COCO's integral: the best precision at a recall of 0, 0.01, ... 1 or more.
            points = [
                max((p for p, r in zip(curve.precision, curve.recall, strict=True) if r >= at), default=0.0)
                for at in np.linspace(0, 1, 101)
            ]
            assert 0.02 < np.mean(points) < 0.98
            assert metrics["per_class"][dataset.class_names[k]][key] == pytest.approx(np.mean(points), abs=1e-9)
    counts = confusion_counts(match_images(dataset, found, score=0.4), 3)
    expected = [loop_correct(dataset, found, k, 0.5, 0.4)[0] for k in range(3)]
    assert np.diag(counts)[:3].tolist() == expected
    assert counts[:3].sum(axis=1).tolist() == np.bincount(dataset.classes).tolist()
    assert counts[:, :3].sum() == sum(int(np.sum(entry.scores > 0.4)) for entry in found)


def test_best_f1_is_the_highest_over_all_scores_and_equal_scores_count_together():
    matches = ClassMatches(np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, False, True, True]), 4)
    curve = precision_recall(matches)
    assert curve.scores.tolist() == [0.9, 0.8, 0.3]
    assert curve.precision.tolist() == [1, pytest.approx(2 / 3), 0.75]
    assert curve.recall.tolist() == [0.25, 0.5, 0.75]
    assert curve.f1 == pytest.approx([0.4, 4 / 7, 0.75])
    assert curve.best == 2
    metrics = {"per_class": {"cell": {"AP": 0.5, "AP50": 0.6, "AP75": 0.4, "boxes": 4}}}
    assert class_rows(metrics, [curve], [7]) == [
        {
            "class": "cell",
            "category_id": 7,
            "boxes": 4,
            "AP": 0.5,
            "AP50": 0.6,
            "AP75": 0.4,
            "best_f1": 0.75,
            "score": 0.3,
            "precision": 0.75,
            "recall": 0.75,
        }
    ]


def test_a_class_without_boxes_or_without_a_right_detection_has_no_best_score():
    assert precision_recall(ClassMatches(np.array([0.9]), np.array([False]), 0)) is None
    assert precision_recall(ClassMatches(np.zeros(0), np.zeros(0, bool), 3)).best is None
    assert precision_recall(ClassMatches(np.array([0.9]), np.array([False]), 3)).best is None


def image_with(correct, missed, false):
    gt, boxes = np.zeros((correct + missed, 4)), np.zeros((correct + false, 4))
    found = np.concatenate([np.arange(correct), np.full(false, -1)]).astype(int)
    return ImageMatches(gt, np.zeros(len(gt), int), boxes, np.ones(len(boxes)), np.zeros(len(boxes), int), found)


def test_images_are_ranked_by_f1_then_by_errors_and_none_is_both_worst_and_best():
    faultless, large, empty = image_with(2, 0, 0), image_with(9, 0, 0), image_with(0, 0, 0)
    blind, crowded = image_with(0, 1, 0), image_with(0, 5, 3)
    half = image_with(2, 2, 2)
    assert rank_images([faultless, empty, blind, half, crowded, large]) == ([4, 2, 3], [5, 0])
    many = [image_with(k, 10, 0) for k in range(20)]
    assert rank_images(many) == ([0, 1, 2, 3, 4, 5], [19, 18, 17, 16, 15, 14])
    assert rank_images([empty]) == ([], [])


def test_many_classes_are_drawn_in_files_of_a_readable_size(tmp_path):
    from PIL import Image

    names = [f"class number {k}" for k in range(100)]
    rng = np.random.default_rng(0)
    draw_confusion(tmp_path / "confusion.png", rng.integers(0, 50, (101, 101)), names, score=0.5)
    matches = [ClassMatches(np.sort(rng.random(20))[::-1], rng.random(20) < 0.5, 15) for _ in names]
    curves = [precision_recall(of_class) for of_class in matches]
    per_class = {name: {"AP50": float(k) / 100, "AP75": None} for k, name in enumerate(names)}
    metrics = {"AP50": 0.5, "AP75": None, "per_class": per_class}
    draw_pr_curves(tmp_path / "pr.png", {0.5: curves, 0.75: [None] * 100}, metrics, names)
    for name in ("confusion.png", "pr.png"):
        with Image.open(tmp_path / name) as picture:
            assert 400 < picture.height < picture.width < 4500


def test_pictures_show_what_became_of_each_box_by_colour(by_hand, tmp_path):
    dataset, found = by_hand
    matches = match_images(dataset, found, score=0.55)[0]
    picture = draw_comparison(np.full((200, 300, 3), 255, np.uint8), matches, dataset, 0, score=0.55)
    factor, gap = 3, 8  # 300 pixels are drawn as 900, and the two pictures are 8 pixels apart
    blank = np.zeros((200 * factor, 300 * factor, 3), np.uint8)
    strip = len(side_by_side(blank, blank, ("", ""))) - 200 * factor  # the titles

    def color_at(y, x, right):
        """Colour of the outline whose left side is at x, a third of the way down from y."""
        column = x * factor + right * (300 * factor + gap)
        return tuple(picture[strip + (y + 30) * factor, column].tolist())

    assert color_at(10, 10, right=True) == FOUND
    assert color_at(10, 100, right=True) == CONFUSED
    assert color_at(100, 10, right=True) == MISSED
    assert color_at(10, 100, right=False) == CONFUSED
    assert color_at(150, 200, right=False) == FALSE
    large = draw_comparison(np.zeros((3000, 2000, 3), np.uint8), matches, dataset, 0, score=0.55)
    assert 1000 < large.shape[0] < 1150
    assert large.shape[1] < 1500


def test_no_image_to_show_leaves_an_empty_folder(by_hand, tmp_path):
    write_ranked(tmp_path / "best", [], by_hand[0], match_images(*by_hand, score=0.5), score=0.5)
    assert not list((tmp_path / "best").iterdir())

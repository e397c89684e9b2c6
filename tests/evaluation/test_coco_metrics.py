"""COCO metrics: worked by hand, against pycocotools' own summary, and where pycocotools fails."""

import copy
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dh_keras.data.formats.coco import load_coco
from dh_keras.errors import DataError
from dh_keras.evaluation.coco_metrics import (
    METRIC_NAMES,
    check_ground_truth,
    coco_results,
    evaluate_detections,
    format_table,
    run_cocoeval,
)
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.run.classes import Category

CATEGORIES = {2: "cell", 5: "plate", 11: "tube"}


def make_dataset(tmp_path, annotations, *, images=(10, 20), **options):
    """Build a dataset of 300x200 images from (image id, category id, [x, y, w, h], iscrowd) rows."""
    tree = {
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 300, "height": 200} for number in images],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
                "area": bbox[2] * bbox[3],
                "iscrowd": crowd,
            }
            for i, (image, category, bbox, crowd) in enumerate(annotations, start=1)
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(tree))
    return load_coco(path, tmp_path, check_images=False, **options)


def detected(image_id, *rows):
    """Build detections of one image from (box yxyx, score, class index) rows."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    scores, classes = np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], np.int32)
    return entry(image_id, boxes, scores, classes)


def entry(image_id, boxes, scores, classes):
    known = tuple(Category(number, name) for number, name in CATEGORIES.items())
    return ImageDetections(boxes=boxes, scores=scores, classes=classes, known=known, image_id=image_id)


def noisy_dataset_and_detections(tmp_path):
    rng = np.random.default_rng(3)
    rows = []
    for image in range(1, 31):
        for _ in range(rng.integers(0, 8)):
            w, h = np.exp(rng.uniform(np.log(8), np.log(150), size=2))
            x, y = rng.uniform(0, 300 - w), rng.uniform(0, 200 - h)
            rows.append((image, int(rng.choice(list(CATEGORIES))), [x, y, w, h], int(rng.random() < 0.1)))
    dataset = make_dataset(tmp_path, rows, images=range(1, 31))
    detections = []
    for index, image_id in enumerate(dataset.image_ids):
        boxes, classes = dataset.boxes_of(index), dataset.classes_of(index)
        false = rng.uniform(0, 90, size=(4, 4)).astype(np.float32)
        false[:, 2:] += false[:, :2] + 5
        size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        found = boxes + rng.normal(0, 0.05, boxes.shape) * size
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        wrong = rng.random(len(classes)) < 0.2
        classes = np.where(wrong, rng.integers(0, 3, len(classes)), classes)
        everything = np.concatenate([found, false]).astype(np.float32)
        scores = rng.uniform(0.05, 1, len(everything)).astype(np.float32)
        detections.append(entry(int(image_id), everything, scores, np.concatenate([classes, rng.integers(0, 3, 4)])))
    return dataset, detections


def test_the_metrics_are_those_of_pycocotools_own_summary(tmp_path, capsys):
    dataset, detections = noisy_dataset_and_detections(tmp_path)
    metrics = evaluate_detections(dataset, detections)
    assert capsys.readouterr().out == ""
    truth = COCO(str(tmp_path / "instances.json"))
    evaluator = COCOeval(truth, truth.loadRes(coco_results(dataset, detections)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    expected = [evaluator.stats[index] for index in (0, 1, 2, 3, 4, 5, 8)]
    assert 0.1 < expected[0] < 0.9
    assert [metrics[name] for name in METRIC_NAMES] == pytest.approx(expected, abs=1e-12)
    assert metrics["images"] == 30
    assert np.mean([of_class["AP"] for of_class in metrics["per_class"].values()]) == pytest.approx(metrics["AP"])
    assert [of_class["boxes"] for of_class in metrics["per_class"].values()] == np.bincount(dataset.classes).tolist()


def random_dataset_and_detections(tmp_path, seed, *, images, most):
    """Boxes on whole pixels and scores of one digit, so that many tie; crowds; images without boxes or detections."""
    random, ids = np.random.default_rng(seed), list(CATEGORIES)
    rows, found = [], []
    for image in range(1, images + 1):
        mine = []
        for _ in range(random.integers(0, 10) if random.random() < 0.8 else 0):
            (x, y), (width, height) = random.integers(0, 150, 2).tolist(), random.integers(1, 140, 2).tolist()
            mine.append((image, ids[random.integers(0, 2)], [x, y, width, height], int(random.random() < 0.15)))
        rows += mine
        near = []
        for _ in range(random.integers(0, most) if random.random() < 0.8 else 0):
            _, category, (x, y, width, height), _ = (
                mine[random.integers(len(mine))] if mine else (0, 11, [5, 5, 9, 9], 0)
            )
            y1, x1, y2, x2 = np.array([y, x, y + height, x + width]) + random.integers(-5, 6, 4)
            category = ids[random.integers(3)] if random.random() < 0.2 else category
            near.append(([y1, x1, max(y1 + 1, y2), max(x1 + 1, x2)], round(random.random(), 1), ids.index(category)))
        found.append(detected(image, *near))
    return make_dataset(tmp_path, rows, images=range(1, images + 1)), found


@pytest.mark.parametrize(
    ("seed", "images", "most", "limits"),
    [(0, 300, 12, [1, 10, 100]), (1, 40, 250, [1, 10, 100]), (2, 1, 5, [1, 10, 100]), (3, 30, 1, [3, 100])],
)
def test_the_arrays_are_those_of_pycocotools(tmp_path, seed, images, most, limits, capsys):
    dataset, found = random_dataset_and_detections(tmp_path, seed, images=images, most=most)
    found = found[: max(1, images * 3 // 4)]
    ours, theirs = (run_cocoeval(dataset, found, limits=limits, by_image=by_image) for by_image in (False, True))
    assert type(theirs) is COCOeval
    assert type(ours) is not COCOeval
    for name in ("recall", "scores"):
        np.testing.assert_array_equal(ours.eval[name], theirs.eval[name], err_msg=name)
    # pycocotools adds the smallest number to what it divides by.
    np.testing.assert_allclose(ours.eval["precision"], theirs.eval["precision"], rtol=0, atol=1e-15)
    if len(limits) == 3:
        for evaluator in (ours, theirs):
            evaluator.summarize()
        np.testing.assert_allclose(np.array(ours.stats)[:12], theirs.stats, rtol=0, atol=1e-15)
        assert most < 10 or 0.05 < theirs.stats[0] < 0.95


def test_one_found_one_missed_and_one_false_box_give_the_ap_worked_out_by_hand(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 5, [20, 10, 60, 40], 0), (10, 5, [150, 90, 30, 70], 0)])
    found, false = ([10, 20, 50, 80], 0.9, 1), ([0, 200, 30, 290], 0.8, 1)
    metrics = evaluate_detections(dataset, [detected(10, found, false)])
    # Precision is 1 at the 51 recall points 0, 0.01 .. 0.5 and 0 at the other 50.
    assert metrics["AP"] == metrics["AP50"] == metrics["AP75"] == pytest.approx(51 / 101)
    assert metrics["AR100"] == pytest.approx(0.5)
    assert metrics["APs"] is None
    assert metrics["APm"] == pytest.approx(51 / 101)
    assert metrics["per_class"]["plate"] == {
        "AP": pytest.approx(51 / 101),
        "AP50": pytest.approx(51 / 101),
        "AP75": pytest.approx(51 / 101),
        "boxes": 2,
    }
    assert metrics["per_class"]["cell"] == {"AP": None, "AP50": None, "AP75": None, "boxes": 0}


def test_a_box_with_iou_of_two_thirds_counts_at_the_four_lowest_thresholds(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 2, [0, 0, 60, 40], 0)])
    metrics = evaluate_detections(dataset, [detected(10, ([0, 0, 40, 40], 0.9, 0))])
    assert metrics["AP"] == pytest.approx(0.4)
    assert metrics["AP50"] == pytest.approx(1.0)
    assert metrics["AP75"] == pytest.approx(0.0)


def test_boxes_are_converted_to_xywh_and_classes_to_the_category_ids_of_the_file(tmp_path):
    order = (Category(1, "tube"), Category(2, "cell"), Category(3, "plate"))
    dataset = make_dataset(tmp_path, [(20, 11, [20, 10, 70, 40], 0)], categories=order)
    detections = [detected(20, ([10, 20, 50, 90], 0.5, 0), ([1, 2, 4, 8], 0.25, 2)), detected(10)]
    results = coco_results(dataset, detections)
    assert results == [
        {"image_id": 20, "category_id": 11, "bbox": [20.0, 10.0, 70.0, 40.0], "score": 0.5},
        {"image_id": 20, "category_id": 5, "bbox": [2.0, 1.0, 6.0, 3.0], "score": 0.25},
    ]
    assert json.loads(json.dumps(results)) == results
    metrics = evaluate_detections(dataset, detections)
    assert list(metrics["per_class"]) == ["tube", "cell", "plate"]
    assert metrics["per_class"]["tube"]["AP"] == pytest.approx(1.0)
    assert [of_class["boxes"] for of_class in metrics["per_class"].values()] == [1, 0, 0]


def test_some_of_the_classes_get_the_numbers_they_get_among_all(tmp_path):
    whole, detections = noisy_dataset_and_detections(tmp_path)
    tree = json.loads((tmp_path / "instances.json").read_text())
    tree["categories"] = [{"id": 7, "name": "tube"}, {"id": 9, "name": "cell"}]
    ids = {11: 7, 2: 9}
    rows = [row for row in tree["annotations"] if row["category_id"] in ids]
    tree["annotations"] = [{**row, "category_id": ids[row["category_id"]]} for row in rows]
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    options = {"categories": whole.categories, "check_images": False}
    with pytest.raises(
        DataError, match=r"missing \['plate'\], not expected \[\]; .* add what is missing to 'categories'"
    ):
        load_coco(tmp_path / "instances.json", tmp_path, **options)
    part = load_coco(tmp_path / "instances.json", tmp_path, subset=True, **options)
    assert part.categories == (Category(2, "cell"), Category(11, "tube"))
    expected = evaluate_detections(whole, detections)["per_class"]
    found = evaluate_detections(part, [one.among(part.categories) for one in detections])
    assert found["per_class"] == {name: expected[name] for name in ("cell", "tube")}
    assert 0.1 < found["AP"] == pytest.approx(np.mean([expected[name]["AP"] for name in ("cell", "tube")]))
    own_ids = load_coco(tmp_path / "instances.json", tmp_path, check_images=False)  # those of the file, in its order
    again = evaluate_detections(own_ids, [one.among(own_ids.categories) for one in detections])
    assert again["per_class"] == found["per_class"]
    tree["categories"].append({"id": 1, "name": "other"})
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"not expected \['other'\]; use files with the same category names$"):
        load_coco(tmp_path / "instances.json", tmp_path, subset=True, **options)


def test_no_detection_at_all_is_an_ap_of_zero(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 2, [20, 10, 20, 20], 0), (20, 5, [20, 10, 200, 150], 0)])
    metrics = evaluate_detections(dataset, [detected(10), detected(20)])
    assert {name: metrics[name] for name in METRIC_NAMES} == {
        "AP": 0.0,
        "AP50": 0.0,
        "AP75": 0.0,
        "APs": 0.0,
        "APm": None,
        "APl": 0.0,
        "AR100": 0.0,
    }
    assert metrics["per_class"]["cell"]["AP"] == 0.0
    assert metrics["per_class"]["tube"]["AP"] is None


def test_without_ground_truth_nothing_is_defined(tmp_path):
    dataset = make_dataset(tmp_path, [])
    for detections in ([detected(10), detected(20)], [detected(10, ([0, 0, 9, 9], 0.9, 0))], []):
        metrics = evaluate_detections(dataset, detections)
        assert [metrics[name] for name in METRIC_NAMES] == [None] * 7
        assert metrics["images"] == len(detections)
        assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_only_the_given_images_are_evaluated(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 2, [20, 10, 60, 40], 0), (20, 2, [0, 0, 50, 50], 0)])
    hit = detected(10, ([10, 20, 50, 80], 0.9, 0))
    alone = evaluate_detections(dataset, [hit])
    assert (alone["AP"], alone["images"], alone["per_class"]["cell"]["boxes"]) == (pytest.approx(1.0), 1, 1)
    both = evaluate_detections(dataset, [hit, detected(20)])
    assert (both["AP"], both["images"], both["per_class"]["cell"]["boxes"]) == (pytest.approx(51 / 101), 2, 2)
    assert evaluate_detections(dataset, [])["AP"] is None


def test_a_detection_inside_a_crowd_is_not_false_and_a_crowd_need_not_be_found(tmp_path):
    rows = [(10, 2, [20, 10, 60, 40], 0), (10, 2, [100, 50, 150, 100], 1)]
    dataset = make_dataset(tmp_path, rows)
    in_crowd, hit = ([60, 110, 80, 130], 0.99, 0), ([10, 20, 50, 80], 0.5, 0)
    metrics = evaluate_detections(dataset, [detected(10, in_crowd, hit)])
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["per_class"]["cell"]["boxes"] == 1
    of_other_class = ([60, 110, 80, 130], 0.99, 1)
    assert evaluate_detections(dataset, [detected(10, of_other_class, hit)])["AP"] == pytest.approx(1.0)


def test_max_detections_limits_ap_but_not_ar100(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 2, [20, 10, 60, 40], 0), (10, 2, [150, 90, 30, 70], 0)])
    both = detected(10, ([10, 20, 50, 80], 0.9, 0), ([90, 150, 160, 180], 0.8, 0))
    metrics = evaluate_detections(dataset, [both], max_detections=1)
    assert metrics["AP"] == pytest.approx(51 / 101)
    assert metrics["AR100"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="max_detections: expected an integer of at least 1, got 0"):
        evaluate_detections(dataset, [both], max_detections=0)


def test_more_than_a_hundred_detections_can_be_counted(tmp_path):
    boxes = [[12 * (i % 20), 20 * (i // 20), 10, 15] for i in range(150)]
    dataset = make_dataset(tmp_path, [(10, 2, box, 0) for box in boxes])
    hits = detected(10, *[([y, x, y + h, x + w], 0.9, 0) for x, y, w, h in boxes])
    assert evaluate_detections(dataset, [hits], max_detections=300)["AP"] == pytest.approx(1.0)
    limited = evaluate_detections(dataset, [hits])
    assert limited["AP"] == pytest.approx(67 / 101)  # recall ends at 100 / 150, after the points 0 .. 0.66
    assert limited["AR100"] == pytest.approx(100 / 150)


def test_annotation_ids_and_missing_keys_do_not_change_the_result_and_nothing_is_written_into_the_dataset(tmp_path):
    dataset, detections = noisy_dataset_and_detections(tmp_path)
    before = copy.deepcopy(dataset.coco_tree())
    expected = evaluate_detections(dataset, detections)
    assert dataset.coco_tree() == before
    for number, annotation in enumerate(dataset.coco_tree()["annotations"]):
        annotation["id"] = number // 2
        if not annotation["iscrowd"]:
            del annotation["iscrowd"], annotation["area"]
    assert evaluate_detections(dataset, detections) == expected


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([detected(99)], r"image 99: not in .*instances\.json"),
        ([detected(10), detected(10)], "image 10: expected its detections in one entry"),
        ([detected(10, ([0, 0, 5, 9], np.nan, 0))], "image 10: expected finite scores, got .* nan, class 0 in row 0"),
        ([detected(20, ([0, 0, 5, 9], 0.5, 0), ([0, 0, np.inf, 9], 0.5, 0))], "image 20: expected finite boxes.*row 1"),
        ([detected(10, ([5, 0, 0, 9], 0.5, 0))], "y2 >= y1"),
        ([detected(10, ([0, 0, 5, 9], 0.5, 3))], "classes from 0 to 2, got .* class 3"),
        ([detected(10, ([0, 0, 5, 9], 0.5, -1))], "classes from 0 to 2, got .* class -1"),
        (
            [entry(10, np.zeros((2, 4)), np.zeros(1), np.zeros(2, int))],
            r"expected boxes \[D, 4\].*got \[2, 4\], \[1\], \[2\]",
        ),
    ],
)
def test_detections_that_cannot_be_evaluated_are_refused_with_the_image(tmp_path, detections, message):
    dataset = make_dataset(tmp_path, [(10, 2, [20, 10, 60, 40], 0)])
    with pytest.raises(ValueError, match=message):
        evaluate_detections(dataset, detections)


def test_the_check_accepts_gaps_crowds_many_boxes_and_boxes_beyond_the_border(tmp_path):
    rows = [(20, 11, [250, 150, 100, 90], 0), (20, 5, [-30, -20, 90, 50], 0), (20, 2, [10, 10, 80, 80], 1)]
    rows += [(10, 2, [12 * (i % 20), 20 * (i // 20), 10, 15], 0) for i in range(150)]
    check_ground_truth(make_dataset(tmp_path, rows))


def test_the_check_names_the_file_and_the_class_when_classes_are_mixed_up(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 2, [20, 10, 60, 40], 0), (20, 5, [0, 0, 50, 50], 0)])
    check_ground_truth(dataset)
    swapped = dataclasses.replace(dataset, classes=dataset.classes[::-1])
    with pytest.raises(DataError, match=r"instances\.json.*AP 0\.000 instead of 1 .*class: cell, 0\.000") as error:
        check_ground_truth(swapped)
    assert "\n" not in str(error.value)


def test_the_check_refuses_a_file_without_boxes(tmp_path):
    with pytest.raises(DataError, match=r"instances\.json: has no boxes to evaluate on"):
        check_ground_truth(make_dataset(tmp_path, [(10, 2, [10, 10, 80, 80], 1)]))


def test_the_table_shows_every_number_and_na_for_what_is_not_defined(tmp_path):
    dataset = make_dataset(tmp_path, [(10, 5, [20, 10, 60, 40], 0), (10, 5, [150, 90, 30, 70], 0)])
    table = format_table(evaluate_detections(dataset, [detected(10, ([10, 20, 50, 80], 0.9, 1))])).splitlines()
    assert table[0] == ("AP 0.505  AP50 0.505  AP75 0.505  APs n/a  APm 0.505  APl n/a  AR100 0.500  (1 images)")
    assert [line.split() for line in table[1:]] == [
        ["class", "boxes", "AP", "AP50", "AP75"],
        ["cell", "0", "n/a", "n/a", "n/a"],
        ["plate", "2", "0.505", "0.505", "0.505"],
        ["tube", "0", "n/a", "n/a", "n/a"],
    ]


def test_tensorflow_is_not_imported():
    code = "import sys, dh_keras.evaluation.coco_metrics; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

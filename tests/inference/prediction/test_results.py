"""JSON, COCO results and CSV hold the same detections; COCO results are what pycocotools evaluates."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dh_keras.data.formats.coco import load_coco
from dh_keras.errors import DataError
from dh_keras.evaluation.coco_metrics import evaluate_detections
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.result_files import CocoIds, write_results
from dh_keras.run.classes import Category

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dög"}]


def detection(box, score, id_, name):
    return {"box": box, "score": score, "category_id": id_, "category": name}


ROWS = [
    {
        **{"index": 0, "file": "x/a.jpg", "width": 40, "height": 30},
        "detections": [detection([1.5, 2, 11.5, 22], 0.9, 7, "dög"), detection([0, 0, 3, 4], 0.6, 3, "cat")],
    },
    {"index": 1, "file": "bad, really.jpg", "error": "bad, really.jpg: no"},
    {"index": 2, "file": "b.jpg", "width": 4, "height": 3, "detections": []},
    {
        **{"index": 3, "file": "v.mp4", "frame": 5, "time": 0.2, "width": 8, "height": 6},
        "detections": [detection([1, 1, 2, 3], 0.7, 3, "cat")],
    },
]


def settings(format_, annotations=None):
    return {"format": format_, "annotations": annotations, "categories": CATEGORIES}


def test_json_has_an_entry_for_each_readable_file(tmp_path):
    summary = write_results(iter(ROWS), tmp_path, settings("json"))
    expected = [{key: value for key, value in row.items() if key != "index"} for row in ROWS if "error" not in row]
    assert json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8")) == expected
    assert (summary.images, summary.empty, summary.counts) == (3, 1, {"cat": 2, "dög": 1})
    assert summary.errors == ["bad, really.jpg: no"]
    with open(tmp_path / "errors.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"file": "bad, really.jpg", "error": "bad, really.jpg: no"}]


def test_csv_has_a_line_for_each_detection(tmp_path):
    write_results(iter(ROWS), tmp_path, settings("csv"))
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines() == [
        "file,frame,time,width,height,y1,x1,y2,x2,score,category_id,category",
        "x/a.jpg,,,40,30,1.5,2,11.5,22,0.9,7,dög",
        "x/a.jpg,,,40,30,0,0,3,4,0.6,3,cat",
        "v.mp4,5,0.2,8,6,1,1,2,3,0.7,3,cat",
    ]


def test_coco_results_without_annotations_come_with_a_table_of_images(tmp_path):
    write_results(iter(ROWS), tmp_path, settings("coco"))
    assert json.loads((tmp_path / "coco_results.json").read_text()) == [
        {"image_id": 1, "category_id": 7, "bbox": [2, 1.5, 20, 10], "score": 0.9},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 3], "score": 0.6},
        {"image_id": 3, "category_id": 3, "bbox": [1, 1, 2, 1], "score": 0.7},
    ]
    table = json.loads((tmp_path / "coco_images.json").read_text(encoding="utf-8"))
    assert table["categories"] == CATEGORIES
    assert [(row["id"], row["file_name"]) for row in table["images"]] == [(1, "x/a.jpg"), (2, "b.jpg"), (3, "v.mp4")]
    assert table["images"][2] == {"id": 3, "file_name": "v.mp4", "frame": 5, "time": 0.2, "width": 8, "height": 6}


@pytest.mark.parametrize("format_", ["json", "coco", "csv"])
def test_nothing_found_is_a_result_as_well(tmp_path, format_):
    write_results(iter([]), tmp_path, settings(format_))
    [result] = [path for path in tmp_path.iterdir() if path.name != "coco_images.json"]
    assert format_ == "csv" or json.loads(result.read_text()) == []
    assert not (tmp_path / "errors.csv").exists()


@pytest.fixture
def annotations(tmp_path):
    """Image names that end alike, a category id that is not the model's, and one class more."""
    names = {11: "a.jpg", 12: "./x/a.jpg", "13": "b.jpg"}
    path = tmp_path / "truth.json"
    tree = {
        "images": [{"id": id_, "file_name": name} for id_, name in names.items()],
        "categories": [{"id": 1, "name": "dög"}, {"id": 2, "name": "cat"}, {"id": 5, "name": "cow"}],
        "annotations": [],
    }
    path.write_text(json.dumps(tree))
    return path


def test_ids_come_from_the_annotations_by_the_longest_end_of_the_path(annotations, tmp_path):
    ids = CocoIds([Category(3, "cat"), Category(7, "dög")], annotations)
    assert [ids.image(name) for name in ("x/a.jpg", "y/a.jpg", "/else/x/a.jpg", "b.jpg")] == [12, 11, 12, "13"]
    assert [ids.category(name) for name in ("cat", "dög")] == [2, 1]
    ids.check([Path("x/a.jpg"), Path("a.jpg")])
    with pytest.raises(DataError, match=r"z/a\.jpg: is the same image of --annotations .* as y/a\.jpg"):
        ids.check([Path("y/a.jpg"), Path("z/a.jpg")])
    with pytest.raises(DataError, match=r"c\.jpg: --annotations .*truth\.json has no image of this file_name"):
        ids.check([Path("a.jpg"), Path("c.jpg")])
    with pytest.raises(DataError, match=r"has no category horse, pig, which the model detects"):
        CocoIds([Category(3, "pig"), Category(4, "horse"), Category(5, "cat")], annotations)
    rows = [row for row in ROWS if row["file"] == "x/a.jpg"]
    write_results(iter(rows), tmp_path, settings("coco", str(annotations)))
    found = json.loads((tmp_path / "coco_results.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in found] == [(12, 1), (12, 2)]
    assert not (tmp_path / "coco_images.json").exists()


def test_ids_need_no_annotations_and_one_image_for_each_file_name(annotations):
    tree = json.loads(annotations.read_text())
    del tree["annotations"]
    annotations.write_text(json.dumps(tree))
    categories = [Category(row["id"], row["name"]) for row in CATEGORIES]
    known = {row["file_name"]: row["id"] for row in tree["images"]}
    ids = CocoIds(categories, annotations)
    assert {name: ids.image(name) for name in known} == known
    tree["images"].append({"id": "again", "file_name": f"./{tree['images'][0]['file_name']}"})
    annotations.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"the images \S+ and 'again' have one file_name, '.*'; keep one of them$"):
        CocoIds(categories, annotations)


def test_pycocotools_gives_the_average_precision_that_evaluation_gives(tiny_shapes, tmp_path, capsys):
    dataset = load_coco(tiny_shapes.val_annotations, tiny_shapes.val_images)
    truth = COCO(tiny_shapes.val_annotations)
    random = np.random.default_rng(3)
    rows, entries = [], []
    for image_id, path in zip(dataset.image_ids.tolist(), dataset.paths, strict=True):
        found = truth.imgToAnns[image_id]
        x, y, width, height = np.array([one["bbox"] for one in found]).T + random.normal(0, 1.5, (4, len(found)))
        boxes, scores = np.stack([y, x, y + height, x + width], axis=1), random.random(len(found))
        ids = [one["category_id"] for one in found]
        names = [truth.cats[id_]["name"] for id_ in ids]
        columns = (boxes.tolist(), scores.tolist(), ids, names)
        rows.append({"file": path, "detections": [detection(*values) for values in zip(*columns, strict=True)]})
        classes = np.array([dataset.class_names.index(name) for name in names])
        found = {"boxes": boxes, "scores": scores, "classes": classes, "known": dataset.categories}
        entries.append(ImageDetections(**found, image_id=image_id))
    categories = [{"id": 50 + index, "name": name} for index, name in enumerate(dataset.class_names)]
    options = {**settings("coco", str(tiny_shapes.val_annotations)), "categories": categories}
    write_results(iter(rows), tmp_path, options)
    evaluator = COCOeval(truth, truth.loadRes(str(tmp_path / "coco_results.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    expected = evaluate_detections(dataset, entries)
    assert 0.3 < expected["AP"] < 0.99
    values = [expected[name] for name in ("AP", "AP50", "AP75", "AR100")]
    np.testing.assert_allclose(evaluator.stats[[0, 1, 2, 8]], values, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"score": 1.5}, r"--score: expected a number from 0 to 1, got 1\.5"),
        ({"batch_size": 0}, r"--batch-size: expected at least 1, got 0"),
        ({"format": "xml"}, r"--format: expected json, coco, csv, got 'xml'"),
        ({"annotations": Path("a.json")}, r"--annotations: gives ids to --format coco only"),
    ],
)
def test_settings_out_of_range_are_refused(values, expected):
    with pytest.raises(DataError, match=expected):
        PredictionSettings(**values)

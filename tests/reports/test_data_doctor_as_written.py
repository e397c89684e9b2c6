"""Files as other tools write them: the doctor names what they have, and the cleaned copy has it as COCO does."""

import json

import pytest

from dh_keras.config.load import load_config
from dh_keras.data.formats.coco import load_coco
from dh_keras.errors import DataError
from dh_keras.reports.data_doctor.fix import write_fixed
from dh_keras.reports.data_doctor.inspection import diagnose

OVERRIDES = ("data.min_size=96", "data.max_size=128", "model.rpn.anchor_sizes=[16,32,64,128,256]")


@pytest.fixture
def coco(make_coco, tmp_path):
    """Two images with two boxes each."""
    coco = make_coco(tmp_path, "train", [(1, "cell"), (2, "blob")])
    for name in ("a.jpg", "b.jpg"):
        coco.image(name, boxes=((4, 4, 35, 34, 1), (80, 50, 36, 38, 2)))
    return coco


def inspect(coco, *overrides):
    return diagnose(coco.write().path, coco.folder, config=load_config(overrides=[*OVERRIDES, *overrides]))


def of_kind(diagnosis, kind):
    return [finding.message for finding in diagnosis.findings if finding.kind == kind]


def fixed(coco, tmp_path, diagnosis):
    changes = write_fixed(diagnosis.splits[0], tmp_path / "fixed.json")
    load_coco(tmp_path / "fixed.json", coco.folder)
    return changes, json.loads((tmp_path / "fixed.json").read_text())


def test_category_ids_beyond_32_bits_are_renumbered(coco, tmp_path):
    large = {1: 2**31, 2: 2**255}
    for row in coco.tree["categories"]:
        row["id"] = large[row["id"]]
    for row in coco.tree["annotations"]:
        row["category_id"] = large[row["category_id"]]
    found = inspect(coco)
    assert len(of_kind(found, "large_category_id")) == 2
    assert "category 'cell' has the id 2147483648, beyond 2147483647" in found.refusal
    changes, tree = fixed(coco, tmp_path, found)
    assert changes == {"categories renumbered, as their ids did not fit 32 bits": 2}
    assert tree["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "blob"}]
    assert [row["category_id"] for row in tree["annotations"]] == [1, 2, 1, 2]


def test_a_large_id_beside_the_largest_gets_a_free_one(coco, tmp_path):
    coco.tree["categories"] = [{"id": 1, "name": "cell"}, {"id": 2**31 - 1, "name": "blob"}, {"id": 2**40, "name": "c"}]
    for row in coco.tree["annotations"]:
        row["category_id"] = {1: 1, 2: 2**31 - 1}[row["category_id"]]
    _, tree = fixed(coco, tmp_path, inspect(coco))
    assert [row["id"] for row in tree["categories"]] == [1, 2**31 - 1, 2]


def test_numbers_as_text_are_written_as_numbers(coco, tmp_path):
    for row in coco.tree["annotations"]:
        row |= {"category_id": str(row["category_id"]), "image_id": f"{row['image_id']}.0", "iscrowd": "0", "area": 0}
    found = inspect(coco)
    [message] = of_kind(found, "id_as_text")
    assert message == "4 annotations, the first is {'id': 1, 'image_id': '1.0', 'category_id': '1'}"
    assert (found.refusal, of_kind(found, "crowd")) == (None, [])
    changes, tree = fixed(coco, tmp_path, found)
    assert changes == {
        "annotations whose ids became numbers": 4,
        "iscrowd that became a number": 4,
        "areas filled in": 4,
    }
    row = {"id": 2, "image_id": 1, "category_id": 2, "bbox": [80, 50, 36, 38], "area": 36.0 * 38, "iscrowd": 0}
    assert tree["annotations"][1] == row


def test_a_box_of_a_polygon_is_named_and_written(coco, tmp_path):
    row = coco.tree["annotations"][0]
    row |= {"bbox": None, "segmentation": [[10, 5, 30, 5, 30, 25]], "area": 200}
    coco.tree["annotations"][1]["bbox"] = None
    found = inspect(coco)
    assert of_kind(found, "box_from_polygon") == ["a.jpg: cell 1: bbox None, its polygon's is [10.0, 5.0, 20.0, 20.0]"]
    assert of_kind(found, "degenerate_box") == ["a.jpg: blob 2: no bbox of four numbers but None"]
    changes, tree = fixed(coco, tmp_path, found)
    assert changes == {"boxes taken from polygons": 1, "boxes without area, or wholly outside, left out": 1}
    assert (tree["annotations"][0]["bbox"], tree["annotations"][0]["area"]) == ([10, 5, 20, 20], 200)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("boxes_as_corners", lambda x, y, w, h: [x, y, x + w, y + h]),
        ("boxes_as_shares", lambda x, y, w, h: [x / 128, y / 96, w / 128, h / 96]),
        ("long_boxes", lambda x, y, w, h: [x, y, w, h, 0.5]),
    ],
)
def test_boxes_of_another_format_are_named_as_in_training_and_not_fixed(coco, tmp_path, kind, change):
    for row in coco.tree["annotations"]:
        x, y, *sides = row["bbox"]
        row["bbox"] = change(x + 10, y + 5, *sides)
    coco.tree["annotations"][0]["bbox"] = change(70, 40, 30, 30)
    found = inspect(coco)
    [message] = of_kind(found, kind)
    with pytest.raises(DataError) as error:
        load_coco(coco.path, coco.folder)
    assert str(error.value) == found.refusal
    assert message in found.refusal
    with pytest.raises(DataError, match=r"4 of 4 boxes|3 of 4 boxes"):
        write_fixed(found.splits[0], tmp_path / "fixed.json")
    assert not (tmp_path / "fixed.json").exists()


def test_an_image_with_more_boxes_than_detections_is_named(coco):
    found = inspect(coco, "model.max_detections=1")
    assert of_kind(found, "more_boxes_than_detections") == [
        f"{name}: 2 boxes, and model.max_detections is 1" for name in ("a.jpg", "b.jpg")
    ]
    assert of_kind(inspect(coco, "model.max_detections=2"), "more_boxes_than_detections") == []


def test_a_class_whose_boxes_are_all_crowd_is_named(coco):
    for row in coco.tree["annotations"]:
        row["iscrowd"] = int(row["category_id"] == 2)
    diagnosis = inspect(coco)
    assert of_kind(diagnosis, "unused_category") == ["'blob', whose boxes are all crowd"]
    coco.tree["annotations"][1]["iscrowd"] = 0
    assert of_kind(inspect(coco), "unused_category") == []


def test_a_missing_file_is_named_with_what_is_nearly_the_same(coco):
    coco.tree["images"][1]["file_name"] = "B.JPG"
    [message] = of_kind(inspect(coco), "missing_file")
    assert message.endswith("B.JPG: no such file; there is 'b.jpg', whose name is nearly the same")

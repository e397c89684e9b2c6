"""The one reader of COCO files: what is usable becomes columns, all else a finding, and training names the first."""

import dataclasses
import json
import math

import numpy as np
import pytest

from dh_keras.data.formats import json_rows
from dh_keras.data.formats.coco_file import read_coco
from dh_keras.data.formats.json_rows import JsonRows, parse_json
from dh_keras.errors import DataError
from dh_keras.run.classes import Category


def read(coco):
    coco.write()
    return read_coco(coco.annotations_path, coco.images_dir, name="train")


@pytest.fixture
def faulty(coco):
    """One fault of each kind among three good images and three good boxes."""
    for number in range(3):
        coco.image(40, 60, id=number)
    coco.tree["images"] += [
        {"file_name": "a.jpg"},
        {"id": 1, "file_name": "again.jpg"},
        {"id": 8},
        {"id": 9, "file_name": "wide.jpg", "height": 40, "width": "wide"},
    ]
    coco.tree["categories"] += [{"id": "seven", "name": "cow"}, {"id": 3, "name": "hen"}, {"id": 9, "name": "dog"}]
    coco.box(0, [1, 2, 3, 4])
    coco.box(8, [1, 2, 3, 4])  # of an image that cannot be used
    coco.box(1, [1, 2, "wide", 4], area=-1, iscrowd=1, category_id=9)
    coco.box(2, [5, 6, 7, 8], id=1)
    coco.box(2, [5, 6, 7, 8], category_id=True)
    return coco


def test_every_fault_is_a_finding_and_the_others_become_columns(faulty):
    file = read(faulty)
    findings = [(finding.kind, finding.message, finding.annotation_ids) for finding in file.findings()]
    assert findings == [
        ("bad_category", "category {'id': 'seven', 'name': 'cow'}: expected an integer id and a name", ()),
        ("duplicate_category", "categories 'cat' and 'hen' have the id 3", ()),
        ("duplicate_category", "two categories have the name 'dog'", ()),
        ("bad_image_entry", "{'file_name': 'a.jpg'}: expected an id", ()),
        ("duplicate_image_id", "2.jpg and again.jpg have the id 1; its boxes are taken as the first one's", ()),
        ("bad_image_entry", "{'id': 8}: image 8: expected a file_name, got None; add it", ()),
        (
            "bad_image_entry",
            "{'id': 9, 'file_name': 'wide.jpg', 'height': 40, 'width': 'wide'}: image 'wide.jpg': expected whole "
            "numbers as height and width, got (40, 'wide'); correct or remove them",
            (),
        ),
        ("bad_reference", "annotation 2 has image_id 8, which no image has", (2,)),
        ("bad_reference", "annotation 5 has category_id True, which no category has", (5,)),
        ("duplicate_annotation_id", "annotation 4 of the file has the id 1", (1,)),
    ]
    assert {finding.split for finding in file.findings()} == {"train"}
    assert file.categories == (Category(1, "dog"), Category(3, "cat"))
    assert [(image.row, image.id) for image in file.images] == [(0, 0), (1, 1), (2, 2), (4, 1)]
    assert [image.declared for image in file.images] == [(40, 60)] * 3 + [None]
    assert [file.annotation_id(box) for box in range(3)] == [1, 3, 1]
    columns = (file.box_rows, file.box_images, file.box_classes, file.crowd)
    assert [column.tolist() for column in columns] == [[0, 2, 3], [0, 1, 2], [1, 0, 1], [False, True, False]]
    np.testing.assert_array_equal(file.xywh, [[1, 2, 3, 4], [math.nan] * 4, [5, 6, 7, 8]])
    np.testing.assert_array_equal(file.area, [12, math.nan, 56])


def test_training_names_the_first_error_and_then_the_next(faulty):
    faulty.tree["annotations"][2]["category_id"] = 1  # not that of a category that goes
    expected = [
        ("categories", 2, "category {'id': 'seven', 'name': 'cow'}: expected an integer id and a name; mend the file"),
        ("categories", 2, "two categories have the id 3; give each its own"),
        ("categories", 2, "two categories have the name 'dog'; give each its own"),
        ("images", 3, "image {'file_name': 'a.jpg'}: expected an id; number the images"),
        ("images", 3, "two images have the id 1; give each image its own id"),
        ("images", 3, "image 8: expected a file_name, got None; add it"),
        ("images", 3, "image 'wide.jpg': expected whole numbers as height and width, got (40, 'wide'); correct or "),
        ("annotations", 1, "annotation 2 has image_id 8, which no image has; correct it or remove the annotation"),
        ("annotations", 3, "annotation 5 has category_id True, which no category has; add the category or remove "),
    ]
    for key, row, message in expected:
        with pytest.raises(DataError) as error:
            faulty.load()
        assert str(error.value).startswith(f"annotations {faulty.annotations_path}: {message}")
        del faulty.tree[key][row]
    assert faulty.load(check_images=False).counts["renumbered_annotation_ids"] == 1


def test_one_odd_box_does_not_change_how_the_others_are_read(coco):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3.5, "4"])
    coco.box(1, [5, None, 7, 8])
    plain = read(coco).xywh
    coco.box(1, [1, 2])
    np.testing.assert_array_equal(read(coco).xywh, [*plain, [math.nan] * 4])
    np.testing.assert_array_equal(plain, [[1, 2, 3.5, 4], [5, math.nan, 7, 8]])


def test_a_healthy_file_has_no_finding(coco):
    coco.image(40, 60, id="left")
    coco.image(40, 60, id="right")
    coco.box("right", [1, 2, 3, 4])
    file = read(coco)
    assert list(file.findings()) == []
    assert (file.box_images.tolist(), file.box_classes.tolist(), file.class_names) == ([1], [1], ["dog", "cat"])


@pytest.mark.parametrize("change", [b"", b"\xef\xbb\xbf"])
def test_annotations_are_text_until_they_are_asked_for(change):
    rows = [{"id": 1, "bbox": [0.1, -0.0, 1e-7, 2**70]}, {"id": 2, "note": "Käse\u2028"}, {"id": 2, "segmentation": []}]
    text = json.dumps({"images": [{"id": 1}], "annotations": rows, "info": None}, ensure_ascii=False)
    tree = parse_json(change + text.encode())
    assert isinstance(tree["annotations"], JsonRows)
    assert list(tree["annotations"]) == tree["annotations"][:] == rows
    assert tree["annotations"][1] == rows[1]
    assert tree["annotations"].keys == {"id", "bbox", "note", "segmentation"}
    assert {**tree, "annotations": None} == {"images": [{"id": 1}], "annotations": None, "info": None}


@pytest.mark.parametrize(
    "text",
    [
        b'{"annotations": [{"bbox": [NaN, 1, 2, Infinity]}]}',
        b'{"annotations": [{"area": 1e400}]}',
        b'{"annotations": [{"file": "\\ud800"}]}',
        b'{"annotations": {"a": 1}, "x": [1, 2]}',
        b'[{"annotations": []}]',
        b"3",
    ],
)
def test_what_only_pythons_json_takes_is_taken(text):
    tree = parse_json(text)
    assert repr(tree) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", [b"", b'{"a": 1,}', b'{"annotations": [{"a": "\xff"}]}', b'{"annotations": [1, 2', b"[" * 100_000]
)
def test_what_is_wrong_with_a_file_is_said_as_pythons_json_says_it(text):
    with pytest.raises((ValueError, RecursionError)) as expected:
        json.loads(text.decode())
    with pytest.raises(type(expected.value)) as error:
        parse_json(text)
    assert str(error.value) == str(expected.value)


def test_columns_do_not_depend_on_how_many_rows_are_read_at_once(coco, monkeypatch):
    coco.image(40, 60)
    for number in range(9):
        coco.box(1, [number, 2, 3.5, 4])
    coco.box("1", [1, 2, 3, 4, 5], id=3, iscrowd=True)
    coco.box(1, [], segmentation=[[1, 2, 11, 2, 11, 22]], id=0, area=None)
    coco.box(7, [1, 2, 3, 4], id=3)
    coco.write()
    whole = read_coco(coco.annotations_path, coco.images_dir)
    assert whole.renumbered_rows.tolist() == [9, 10, 11]
    monkeypatch.setattr(json_rows, "_CHUNK", 4)
    parts = read_coco(coco.annotations_path, coco.images_dir)
    assert list(whole.findings()) == list(parts.findings())
    for field in dataclasses.fields(whole):
        if field.name != "tree":
            np.testing.assert_equal(getattr(parts, field.name), getattr(whole, field.name), err_msg=field.name)

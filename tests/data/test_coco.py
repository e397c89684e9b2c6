"""COCO files in, arrays out: ids, boxes, orientation, and an error or a count for everything that can be wrong."""

import ast
import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dh_keras.data.formats.coco as coco_module
from dh_keras.data.dataset import boxes_from_xywh
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.images import read_exif_orientation
from dh_keras.data.pipeline import find_bad_image
from dh_keras.errors import DataError
from dh_keras.run.classes import Category


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def evaluate_perfect_detections(dataset):
    """AP that pycocotools gives when the ground truth itself is the answer."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset.coco_tree()
        truth.createIndex()
        rows = [row for row in dataset.coco_tree()["annotations"] if not row["iscrowd"]]
        detections = truth.loadRes([{**row, "score": 0.9} for row in rows])
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


# What a healthy file becomes.


def test_boxes_become_yxyx_and_classes_follow_sorted_category_ids(coco):
    coco.image(40, 60)
    coco.image(50, 30)
    coco.box(2, [1, 2, 10, 20], category_id=1)
    coco.box(1, [5, 6, 7, 8], category_id=3)
    coco.box(1, [0, 0, 60, 40], category_id=1)
    dataset = coco.load()
    assert dataset.categories == (Category(1, "dog"), Category(3, "cat"))
    assert (dataset.num_classes, dataset.class_names, len(dataset)) == (2, ("dog", "cat"), 2)
    assert dataset.category_ids.tolist() == [1, 3]
    assert dataset.boxes_of(0).tolist() == [[6, 5, 14, 12], [0, 0, 40, 60]]
    assert dataset.boxes_of(1).tolist() == [[2, 1, 22, 11]]
    assert dataset.classes_of(0).tolist() == [1, 0]
    assert dataset.classes_of(1).tolist() == [0]
    assert dataset.sizes.tolist() == [[40, 60], [50, 30]]
    assert dataset.paths == [str(coco.images_dir / "1.jpg"), str(coco.images_dir / "2.jpg")]
    assert (dataset.boxes.dtype, dataset.classes.dtype) == (np.float32, np.int32)
    assert (dataset.image_ids.dtype, dataset.sizes.dtype, dataset.box_offsets.dtype) == (np.int64, np.int32, np.int64)


def test_boxes_of_an_image_keep_the_order_of_the_file(coco):
    coco.image(40, 60)
    coco.image(40, 60)
    for number in range(300):
        coco.box(1 + number * 7 % 2, [number / 8, 0, 1, 1])
    dataset = coco.load()
    for index in range(2):
        lefts = [number / 8 for number in range(300) if number * 7 % 2 == index]
        assert dataset.boxes_of(index)[:, 1].tolist() == lefts


def test_xywh_conversion_is_undone_by_hand_written_inverse():
    xywh = np.array([[1.5, 2.0, 30.0, 4.25], [0.0, 7.0, 1.0, 90.0]])
    y1, x1, y2, x2 = boxes_from_xywh(xywh).T
    np.testing.assert_array_equal(np.stack([x1, y1, x2 - x1, y2 - y1], axis=1), xywh)
    assert boxes_from_xywh(np.zeros((0, 4))).shape == (0, 4)


def test_gaps_in_category_ids_leave_no_gap_in_classes(coco):
    coco.tree["categories"] = [{"id": number, "name": f"c{number}"} for number in (90, 7, 13)]
    coco.image(20, 30)
    for number in (13, 90, 7):
        coco.box(1, [0, 0, 5, 9], category_id=number)
    dataset = coco.load()
    assert dataset.classes.tolist() == [1, 2, 0]
    assert [row["category_id"] for row in dataset.coco_tree()["annotations"]] == [13, 90, 7]
    assert dataset.coco_tree()["categories"] == coco.tree["categories"]


def test_given_categories_set_the_class_order_and_keep_the_ids_of_the_file(coco):
    coco.image(20, 30)
    coco.box(1, [0, 0, 5, 9], category_id=1)
    coco.box(1, [1, 0, 5, 9], category_id=3)
    wanted = (Category(10, "cat"), Category(20, "dog"))
    dataset = coco.load(categories=wanted)
    assert dataset.categories == wanted
    assert dataset.category_ids.tolist() == [3, 1]
    assert dataset.classes.tolist() == [1, 0]
    assert [row["category_id"] for row in dataset.coco_tree()["annotations"]] == [1, 3]


def test_other_category_names_are_refused_with_the_differences(coco):
    coco.image(20, 30)
    with pytest.raises(DataError) as error:
        coco.load(categories=[Category(1, "dog"), Category(2, "horse")])
    message = one_line(error)
    assert "missing ['horse']" in message
    assert "not expected ['cat']" in message
    assert str(coco.annotations_path) in message


def test_empty_images_are_kept_and_counted(coco):
    for _ in range(3):
        coco.image(20, 30)
    coco.box(2, [0, 0, 5, 9])
    dataset = coco.load()
    assert dataset.box_offsets.tolist() == [0, 0, 1, 1]
    assert dataset.counts["empty_images"] == 2
    assert dataset.boxes_of(2).shape == (0, 4)


def test_images_without_any_annotation_are_legal(coco):
    coco.image(20, 30)
    dataset = coco.load()
    assert (dataset.boxes.shape, dataset.box_offsets.tolist()) == ((0, 4), [0, 0])
    assert dataset.coco_tree()["annotations"] == []


def test_crowds_are_no_targets_but_stay_in_the_ground_truth(coco):
    coco.image(40, 60)
    coco.box(1, [5, 6, 7, 8])
    coco.box(1, [0, 0, 30, 20], iscrowd=1, area=345, segmentation={"counts": [5, 6], "size": [40, 60]})
    dataset = coco.load()
    assert dataset.boxes.tolist() == [[6, 5, 14, 12]]
    crowd = dataset.coco_tree()["annotations"][1]
    assert crowd == {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 30, 20], "area": 345, "iscrowd": 1}
    assert dataset.counts["crowd"] == 1
    assert evaluate_perfect_detections(dataset) == pytest.approx(1.0)


# Boxes that cannot be used as they are.


def test_boxes_partly_outside_are_clipped_in_targets_only(coco):
    coco.image(40, 60)
    coco.box(1, [-5, 30, 20, 20])
    coco.box(1, [50, 0, 10.001, 10])  # rounding in the file, not worth a count
    dataset = coco.load()
    np.testing.assert_allclose(dataset.boxes, [[30, 0, 40, 15], [0, 50, 10, 60]])
    assert dataset.counts["clipped"] == 1
    assert dataset.coco_tree()["annotations"][0]["bbox"] == [-5, 30, 20, 20]


@pytest.mark.parametrize(
    "bbox",
    [
        [5, 5, -3, 4],
        [5, 5, 3, -4],
        [5, 5, 0, 4],
        [math.nan, 5, 3, 4],
        [5, 5, math.inf, 4],
        [-math.inf, 5, math.inf, 4],
        [60, 5, 3, 4],
        [-9, 5, 3, 4],
        [5, 41, 3, 4],
        [5, 5, 3],
        [],
        [5, 5, "wide", 4],
        [5, None, 3, 4],
        [5, 5, 10**400, 4],
    ],
    ids=str,
)
def test_degenerate_boxes_are_dropped_and_counted(coco, bbox):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3, 4])
    coco.box(1, bbox, area=1.0)
    dataset = coco.load()
    assert dataset.boxes.tolist() == [[2, 1, 6, 4]]
    assert dataset.counts["degenerate"] == 1
    assert [row["bbox"] for row in dataset.coco_tree()["annotations"]] == [[1, 2, 3, 4]]


def test_a_missing_bbox_counts_as_degenerate(coco):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3, 4])
    del coco.tree["annotations"][0]["bbox"]
    assert coco.load().counts["degenerate"] == 1


# Traps of pycocotools.


@pytest.mark.parametrize("numbers", [(0, 1, 2), (5, 5, 5), (0, 0, 7)])
def test_annotation_ids_are_renumbered_so_that_perfect_detections_score_one(coco, numbers):
    coco.image(40, 60)
    coco.image(40, 60)
    for number, image in zip(numbers, (1, 1, 2), strict=True):
        coco.box(image, [3 * image, 2, 20, 10 + number], id=number)
    coco.box(2, [30, 20, 9, 8])
    del coco.tree["annotations"][-1]["id"]
    dataset = coco.load()
    assert [row["id"] for row in dataset.coco_tree()["annotations"]] == [1, 2, 3, 4]
    distinct = len({number for number in numbers if number > 0})
    assert dataset.counts["renumbered_annotation_ids"] == 4 - distinct
    assert evaluate_perfect_detections(dataset) == pytest.approx(1.0)


def test_missing_area_and_iscrowd_are_filled_in(coco):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3, 4])
    coco.box(1, [1, 2, 3, 5], area=6)
    del coco.tree["annotations"][0]["area"], coco.tree["annotations"][0]["iscrowd"]
    dataset = coco.load()
    assert [(row["area"], row["iscrowd"]) for row in dataset.coco_tree()["annotations"]] == [(12, 0), (6, 0)]
    assert dataset.counts["filled_areas"] == 1


def test_image_ids_that_are_strings_become_numbers(coco):
    coco.image(40, 60, id="left")
    coco.image(50, 60, id="right")
    coco.box("right", [1, 2, 3, 4])
    dataset = coco.load()
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.counts["renumbered_image_ids"] == 2
    assert dataset.coco_tree()["annotations"][0]["image_id"] == 2
    assert [row["id"] for row in dataset.coco_tree()["images"]] == [1, 2]


def test_integer_image_ids_stay_as_they_are(coco):
    coco.image(40, 60, id=139)
    coco.image(50, 60, id=7)
    coco.box(7, [1, 2, 3, 4])
    dataset = coco.load()
    assert dataset.image_ids.tolist() == [139, 7]
    assert dataset.counts["renumbered_image_ids"] == 0
    assert dataset.box_offsets.tolist() == [0, 0, 1]


# Files that cannot be used.


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file") as error:
        load_coco(tmp_path / "none.json", tmp_path)
    assert str(tmp_path / "none.json") in one_line(error)


def test_a_missing_image_folder_is_named(coco):
    coco.image(40, 60)
    coco.write()
    with pytest.raises(DataError, match="no such folder"):
        load_coco(coco.annotations_path, coco.images_dir / "elsewhere")


def test_a_truncated_annotation_file_is_not_json(coco):
    coco.image(40, 60)
    coco.write()
    text = coco.annotations_path.read_text()
    coco.annotations_path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="not valid JSON") as error:
        load_coco(coco.annotations_path, coco.images_dir)
    assert str(coco.annotations_path) in one_line(error)


def test_an_annotation_file_of_zero_bytes_is_not_json(coco):
    coco.annotations_path.write_text("")
    with pytest.raises(DataError, match="not valid JSON"):
        load_coco(coco.annotations_path, coco.images_dir)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_an_annotation_file_of_powershell_is_called_utf_16(coco, encoding):
    coco.image(40, 60)
    coco.write()
    coco.annotations_path.write_bytes(("\ufeff" + coco.annotations_path.read_text()).encode(encoding))
    with pytest.raises(DataError, match="is UTF-16 text; save it as UTF-8") as error:
        load_coco(coco.annotations_path, coco.images_dir)
    assert str(coco.annotations_path) in one_line(error)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_missing_key_is_named(coco, key):
    coco.image(40, 60)
    del coco.tree[key]
    with pytest.raises(DataError, match=f"'{key}' .* missing") as error:
        coco.load()
    one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["images"].clear(), "'images' is empty"),
        (lambda tree: tree["categories"].clear(), "'categories' is empty"),
        (lambda tree: tree.update(images={"1": {}}), "'images' with a list"),
        (lambda tree: tree["images"].append(dict(tree["images"][0])), "two images have the id 1"),
        (lambda tree: tree["images"][0].pop("id"), "expected an id"),
        (lambda tree: tree["images"][0].pop("file_name"), "expected a file_name"),
        (lambda tree: tree["images"][0].update(file_name="\udcff.jpg"), "expected a file_name, got '.udcff.jpg'"),
        (lambda tree: tree["categories"][0].update(name="\ud800"), "expected an integer id and a name"),
        (lambda tree: tree["images"][0].update(width="wide"), "whole numbers"),
        (lambda tree: tree["images"][0].update(width=-60), "whole numbers"),
        (lambda tree: tree["images"][0].update(width=math.nan), "whole numbers"),
        (lambda tree: tree["images"][0].update(height=40.5), "whole numbers"),
        (lambda tree: tree["categories"].append({"id": 3, "name": "cow"}), "two categories have the id 3"),
        (lambda tree: tree["categories"].append({"id": 4, "name": "cat"}), "two categories have the name 'cat'"),
        (lambda tree: tree["categories"].append({"id": "four", "name": "cow"}), "integer id"),
        (lambda tree: tree["annotations"][0].update(image_id=99), "annotation 1 has image_id 99"),
        (lambda tree: tree["annotations"][0].update(image_id="one"), "annotation 1 has image_id 'one'"),
        (lambda tree: tree["annotations"][0].update(image_id=[1]), r"annotation 1 has image_id \[1\]"),
        (lambda tree: tree["annotations"][0].update(category_id=2), "annotation 1 has category_id 2"),
        (lambda tree: tree["annotations"][0].pop("category_id"), "annotation 1 has category_id None"),
    ],
)
def test_an_inconsistent_annotation_file_is_refused_by_name(coco, change, message):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3, 4])
    change(coco.tree)
    with pytest.raises(DataError, match=message) as error:
        coco.load()
    assert str(coco.annotations_path) in one_line(error)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "{root}/secret.jpg", "../images_2/x.jpg", ".."]
)
def test_a_file_name_that_leaves_the_folder_is_refused(coco, tmp_path, name):
    (tmp_path / "secret.jpg").write_bytes(coco.image(40, 60).read_bytes())
    coco.tree["images"][0]["file_name"] = name.format(root=tmp_path)
    for check in (True, False):
        with pytest.raises(DataError, match="leaves the image folder"):
            coco.load(check_images=check)


def test_a_subfolder_and_a_harmless_detour_are_allowed(coco):
    (coco.images_dir / "a").mkdir()
    coco.image(40, 60, name="a/../a/x.jpg")
    assert coco.load().paths == [str(coco.images_dir / "a" / "x.jpg")]


def test_missing_images_are_counted_and_the_first_is_named(coco):
    paths = [coco.image(40, 60) for _ in range(4)]
    paths[1].unlink()
    paths[3].unlink()
    with pytest.raises(DataError, match="2 of 4 image files are missing") as error:
        coco.load()
    assert str(paths[1]) in one_line(error)


# The image files themselves.


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_named(coco, make, kind):
    data = make.encode(make.pixels(90, 70), kind)
    coco.image(90, 70)
    bad = coco.image(90, 70, data=data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match="truncated") as error:
        coco.load()
    assert str(bad) in one_line(error)
    assert str(bad) in find_bad_image(coco.load(check_images=False))


@pytest.mark.parametrize("tail", [bytes(300), b"\xff\xff\n", b"camera maker's trailer" * 900])
def test_bytes_after_the_end_of_a_jpeg_are_tolerated(coco, make, tail):
    coco.image(90, 70, data=make.encode(make.pixels(90, 70)) + tail)
    assert coco.load().sizes.tolist() == [[90, 70]]


def test_zeros_in_place_of_the_last_part_are_not_padding(coco, make):
    data = make.encode(make.pixels(200, 150))
    bad = coco.image(200, 150, data=data[: len(data) // 4] + bytes(len(data) * 3 // 4))
    with pytest.raises(DataError, match="truncated") as error:
        coco.load()
    assert str(bad) in one_line(error)


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_a_file_that_is_no_image_is_named(coco, data):
    bad = coco.image(40, 60, data=data)
    with pytest.raises(DataError, match="not an image") as error:
        coco.load()
    assert str(bad) in one_line(error)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_refused_with_a_way_to_convert(coco, make, kind):
    coco.image(40, 60, name="photo.jpg", data=make.encode(make.pixels(40, 60), kind))
    with pytest.raises(DataError, match=f"format {kind}, expected JPEG or PNG") as error:
        coco.load()
    assert "convert" in one_line(error)


def test_a_png_named_jpg_is_fine(coco, make):
    coco.image(40, 60, name="photo.jpg", data=make.encode(make.pixels(40, 60), "PNG"))
    dataset = coco.load()
    assert dataset.sizes.tolist() == [[40, 60]]
    assert find_bad_image(dataset) is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_colour_mode_of_jpeg_and_png_is_accepted(coco, make, mode):
    pixels = make.pixels(40, 60)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    assert image.mode == mode
    coco.image(40, 60, data=make.encode(image, "JPEG" if mode == "CMYK" else "PNG"))
    dataset = coco.load()
    assert dataset.sizes.tolist() == [[40, 60]]
    assert find_bad_image(dataset) is None


def test_a_size_that_matches_neither_way_is_refused_with_both_sizes(coco):
    path = coco.image(40, 60)
    coco.tree["images"][0]["width"] = 61
    with pytest.raises(DataError) as error:
        coco.load()
    message = one_line(error)
    assert f"image {path}: the file is 60x40 but its annotation says 61x40" in message


def test_swapped_sizes_without_an_exif_tag_are_refused(coco):
    coco.image(40, 60)
    coco.tree["images"][0].update(height=60, width=40)
    with pytest.raises(DataError, match="60x40 but its annotation says 40x60"):
        coco.load()


def test_a_missing_size_is_taken_from_the_upright_image(coco, make):
    coco.image(40, 60)
    coco.image(40, 60, data=make.with_segments(make.encode(make.pixels(40, 60)), make.exif(6)))
    for row in coco.tree["images"]:
        del row["height"]
    dataset = coco.load()
    assert dataset.sizes.tolist() == [[40, 60], [60, 40]]
    assert dataset.counts["filled_sizes"] == 2
    assert [(row["height"], row["width"]) for row in dataset.coco_tree()["images"]] == [(40, 60), (60, 40)]
    with pytest.raises(DataError, match="no height and width"):
        coco.load(check_images=False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("annotated", ["upright", "raw"])
def test_exif_orientation_is_applied_unless_the_annotation_is_on_raw_pixels(coco, make, orientation, annotated):
    data = make.with_segments(make.encode(make.pixels(40, 60)), make.exif(orientation))
    size = (60, 40) if annotated == "upright" and orientation >= 5 else (40, 60)
    coco.image(*size, data=data)
    dataset = coco.load()
    expected = 1 if annotated == "raw" and orientation >= 5 else orientation
    assert dataset.orientations.tolist() == [expected]
    assert dataset.sizes.tolist() == [list(size)]
    assert dataset.counts["exif_rotated"] == int(expected != 1)
    assert find_bad_image(dataset) is None
    assert coco.load(check_images=False).orientations.tolist() == [1]


def test_a_square_image_follows_its_exif_orientation(coco, make):
    coco.image(50, 50, data=make.with_segments(make.encode(make.pixels(50, 50)), make.exif(8)))
    assert coco.load().orientations.tolist() == [8]


def test_exif_reader_agrees_with_pillow(make):
    jpeg = make.encode(make.pixels(16, 24))
    for order in "<>":
        for orientation in range(1, 9):
            data = make.with_segments(jpeg, b"\xff\xe5\x00\x04ab", make.exif(orientation, order, before=2))
            pillow = Image.open(io.BytesIO(data)).getexif()[0x0112]
            assert read_exif_orientation(data) == pillow == orientation


def test_find_bad_image_looks_only_where_it_is_told_and_checks_sizes(coco, make):
    good, other = coco.image(40, 60), coco.image(40, 60)
    other.write_bytes(make.encode(make.pixels(40, 61)))
    dataset = coco.load(check_images=False)
    assert find_bad_image(dataset, [0]) is None
    reason = find_bad_image(dataset)
    assert str(other) in reason
    assert "(40, 60)" in reason
    assert "(40, 61)" in reason
    good.unlink()
    assert str(good) in find_bad_image(dataset)


def test_summary_is_a_table_of_categories_with_the_counts(coco):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3, 4], category_id=3)
    coco.box(1, [1, 2, 3, 4], category_id=3)
    coco.box(1, [1, 2, 3, -4], category_id=1)
    assert coco.load().summary().splitlines() == [
        "1 images, 2 boxes, 1 degenerate",
        "id  category  boxes",
        " 1  dog           0",
        " 3  cat           2",
    ]


def test_a_byte_order_mark_is_accepted(coco):
    coco.image(40, 60)
    coco.annotations_path.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco.tree).encode())
    assert len(load_coco(coco.annotations_path, coco.images_dir)) == 1


def test_the_module_does_not_import_tensorflow_at_the_top():
    tree = ast.parse(Path(coco_module.__file__).read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "numpy" in names
    assert not any(name.startswith(("tensorflow", "keras", "dh_keras.data.transforms")) for name in names)

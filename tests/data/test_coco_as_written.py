"""COCO files as other tools write them: what is meant is taken and counted, what cannot be is refused by name."""

import unicodedata

import numpy as np
import pytest

from dh_keras.data.formats.coco import load_coco, read_categories
from dh_keras.data.formats.coco_entries import whole_number
from dh_keras.data.images import near_name
from dh_keras.errors import DataError
from dh_keras.run.classes import MAX_ID, Category


def refusal(coco, **options):
    with pytest.raises(DataError) as error:
        coco.load(**options)
    text = str(error.value)
    assert "\n" not in text
    assert "\r" not in text
    return text.removeprefix(f"annotations {coco.annotations_path}: ")


@pytest.fixture
def two_boxes(coco):
    coco.image(40, 60)
    coco.image(50, 60)
    coco.box(1, [1, 2, 3, 4], category_id=1)
    coco.box(2, [5, 6, 7, 8], category_id=3)
    return coco


# Ids.


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7), ("7", 7), (" -07\r", -7), (7.0, 7), ("7.0", 7), ("7.", 7), (10**40, 10**40), (1e3, 1000)]
    + [(value, None) for value in (True, None, "", "7.5", 7.5, "seven", "1e3", "٧", "7" * 101, [7], float("nan"))],
)
def test_an_id_is_the_number_that_it_is(value, number):
    assert whole_number(value) == number


@pytest.mark.parametrize("write", [str, float, "{}.0".format])
@pytest.mark.parametrize("key", ["category_id", "image_id"])
def test_ids_as_text_or_with_a_point_are_numbers_and_counted(two_boxes, key, write):
    expected = two_boxes.load()
    for row in two_boxes.tree["annotations"]:
        row[key] = write(row[key])
    dataset = two_boxes.load()
    np.testing.assert_array_equal(dataset.boxes, expected.boxes)
    np.testing.assert_array_equal(dataset.classes, [0, 1])
    assert dataset.coco_tree() == expected.coco_tree()
    assert dataset.counts["ids_as_text_or_with_a_point"] == 2
    assert "2 ids as text or with a point" in dataset.summary()


@pytest.mark.parametrize("write", [str, float])
def test_ids_of_categories_and_images_as_text_or_with_a_point_are_numbers(two_boxes, write):
    expected = two_boxes.load()
    for row in two_boxes.tree["categories"] + two_boxes.tree["images"]:
        row["id"] = write(row["id"])
    dataset = two_boxes.load()
    assert dataset.categories == (Category(1, "dog"), Category(3, "cat"))
    assert dataset.coco_tree() == expected.coco_tree()
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.counts["renumbered_image_ids"] == 0


def test_a_number_that_two_ids_stand_for_refers_to_neither(two_boxes):
    two_boxes.tree["images"][0]["id"], two_boxes.tree["images"][1]["id"] = "7", "07"
    two_boxes.tree["annotations"][0]["image_id"] = 7
    assert refusal(two_boxes).startswith("annotation 1 has image_id 7, which no image has")
    two_boxes.tree["annotations"][0]["image_id"], two_boxes.tree["annotations"][1]["image_id"] = "7", "07"
    assert [two_boxes.load().boxes_of(index)[0, 0] for index in range(2)] == [2, 6]


@pytest.mark.parametrize("number", [2**31, -(2**31), 2**63, 2**255 + 1, 3412026288])
def test_a_category_id_beyond_32_bits_is_refused_when_the_file_is_read(two_boxes, number):
    two_boxes.tree["categories"][0]["id"] = two_boxes.tree["annotations"][1]["category_id"] = number
    told = f"category 'cat' has the id {str(number)[:40]}, beyond {MAX_ID}; number the categories from 1"
    assert refusal(two_boxes).startswith(told)
    with pytest.raises(DataError, match="or let dh-keras inspect-data --fix do it"):
        read_categories(two_boxes.annotations_path)


def test_the_largest_category_id_is_taken(two_boxes):
    two_boxes.tree["categories"][0]["id"] = two_boxes.tree["annotations"][1]["category_id"] = MAX_ID
    assert two_boxes.load().category_ids.tolist() == [1, 2**31 - 1]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_image_ids_beyond_64_bits_are_numbered_anew(two_boxes, number):
    two_boxes.tree["images"][1]["id"] = two_boxes.tree["annotations"][1]["image_id"] = number
    dataset = two_boxes.load()
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.counts["renumbered_image_ids"] == 2


# Fields that lie.


@pytest.mark.parametrize(
    ("value", "crowd"), [("0", 0), (0.0, 0), (None, 0), (False, 0), ("1", 1), (1.0, 1), (True, 1), (" 0 ", 0)]
)
def test_iscrowd_is_what_it_says(two_boxes, value, crowd):
    two_boxes.tree["annotations"][0]["iscrowd"] = value
    dataset = two_boxes.load()
    assert (dataset.counts["crowd"], len(dataset.boxes)) == (crowd, 2 - crowd)


@pytest.mark.parametrize("value", ["no", "", 2, -1, 0.5, float("nan"), 10**400, [], {"a": 1}])
def test_an_iscrowd_that_says_neither_is_refused(two_boxes, value):
    two_boxes.tree["annotations"][1]["iscrowd"] = value
    assert refusal(two_boxes) == f"annotation 2 has iscrowd {value!r:.40}; write 0, or 1 for a crowd"


@pytest.mark.parametrize("area", [0, 0.0, -1, None, "12"])
def test_an_area_that_cannot_be_is_filled_in_from_the_box(two_boxes, area):
    two_boxes.tree["annotations"][0]["area"] = area
    dataset = two_boxes.load()
    assert [row["area"] for row in dataset.coco_tree()["annotations"]] == [12, 56]
    assert dataset.counts["filled_areas"] == 1


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], [1, 2], "box"])
def test_a_polygon_gives_the_box_that_is_missing(two_boxes, bbox):
    row = two_boxes.tree["annotations"][0]
    row["bbox"], row["area"] = bbox, 99
    row["segmentation"] = [[10, 5, 30, 5, 30, 25], [12, 5, 40.5, 7, 12, 8]]
    dataset = two_boxes.load()
    assert dataset.boxes_of(0).tolist() == [[5, 10, 25, 40.5]]
    assert dataset.coco_tree()["annotations"][0]["bbox"] == [10, 5, 30.5, 20]
    assert (dataset.counts["boxes_from_polygons"], dataset.counts["degenerate"]) == (1, 0)


@pytest.mark.parametrize(
    "segmentation",
    [
        *(None, [], [[]], [[1, 2, 3, 4]], [["a"] * 6], [[1, 2, 3, 4, 5, None]], {"counts": [1, 2], "size": [3, 4]}),
        *("abcdef", 5, [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, 10**400]], [[0, 0, 5, 0, 9, 0]]),
    ],
    ids=str,
)
def test_what_is_no_polygon_gives_no_box(two_boxes, segmentation):
    two_boxes.tree["annotations"][0] |= {"bbox": None, "segmentation": segmentation}
    dataset = two_boxes.load()
    assert (len(dataset.boxes), dataset.counts["degenerate"]) == (1, 1)


def test_boxes_as_shares_of_the_image_are_refused(coco):
    coco.image(40, 60)
    for left in (0.1, 0.3, 0.5):
        coco.box(1, [left, 0.2, 0.25, 0.5])
    assert refusal(coco) == (
        "3 of 3 boxes look like shares of the image, such as [0.1, 0.2, 0.25, 0.5]; expected pixels, multiply them by "
        "the width and height of the image"
    )
    coco.box(1, [20, 10, 5, 6])
    assert coco.load().counts["boxes"] == 4  # 3 of 4 are small boxes, and not nearly all


def test_a_box_of_one_pixel_in_the_corner_is_no_share(coco):
    coco.image(40, 60)
    coco.box(1, [0, 0, 1, 1])
    assert coco.load().counts["boxes"] == 1


def test_boxes_as_corners_are_refused(coco):
    coco.image(40, 60)
    for corners in ((30, 20, 50, 38), (5, 8, 12, 19), (33, 3, 41, 16), (24, 22, 60, 40)):
        coco.box(1, list(corners))
    told = "3 of 4 boxes reach out of their images and all fit as corners x1, y1, x2, y2, such as [30.0, 20.0, 50.0, "
    for check in (True, False):
        assert refusal(coco, check_images=check).startswith(told)
    coco.tree["annotations"][1]["bbox"] = [12, 8, 5, 19]  # no corners: it would end before it starts
    assert coco.load().counts["clipped"] == 3


def test_boxes_of_five_numbers_are_refused(coco):
    coco.image(40, 60)
    coco.box(1, [1, 2, 3, 4, 0.5])
    coco.box(1, [1, 2, 3, 4, 0.9])
    assert refusal(coco).startswith("2 of 2 boxes have more than four numbers, such as [1, 2, 3, 4, 0.5]; write x, y, ")


def test_a_panoptic_file_is_named(two_boxes):
    two_boxes.tree["annotations"] = [{"image_id": 1, "file_name": "1.png", "segments_info": []}]
    assert refusal(two_boxes).startswith(
        "is a panoptic file (it has 'segments_info'); expected one with boxes, such as"
    )


def test_a_file_under_two_ids_is_counted(two_boxes):
    two_boxes.tree["images"].append({**two_boxes.tree["images"][0], "id": 3})
    dataset = two_boxes.load()
    assert (len(dataset), dataset.counts["files_listed_twice"]) == (3, 1)
    assert "1 files listed twice" in dataset.summary()


@pytest.mark.parametrize("side", [2**31, 10**400, 1e300])
def test_a_size_that_no_image_has_is_refused(two_boxes, side):
    two_boxes.tree["images"][0]["width"] = side
    for check in (True, False):
        assert refusal(two_boxes, check_images=check).startswith("image '1.jpg': expected whole numbers as height and ")


# Names of files.


@pytest.mark.parametrize(
    ("on_disk", "written", "told"),
    [
        ("a/1.jpg", "a\\1.jpg", "'a/1.jpg', with / in the place of \\"),
        ("my photo.jpg", "my%20photo.jpg", "'my photo.jpg', with the characters that % stands for"),
        ("1.jpg", "1.jpg\r", "'1.jpg', without the white space at the end"),
        ("1.jpg", "photos/1.jpg", "'1.jpg', without the folders before it"),
        ("1.jpg", "C:\\photos\\1.jpg", "'1.jpg', without the folders before it"),
        ("images/1.jpg", "1.jpg", "'images/1.jpg', in a folder of this name"),
        ("IMG_1.JPG", "img_1.jpg", "'IMG_1.JPG', whose name is nearly the same"),
        ("a/b c.jpg", "a\\b%20c.jpg", "'b c.jpg', whose name is nearly the same"),
        ("1.jpeg", "1.jpg", "'1.jpeg', with another ending"),
        (
            unicodedata.normalize("NFD", "café.jpg"),
            "café.jpg",
            f"{unicodedata.normalize('NFD', 'café.jpg')!r}, with accents that are characters of their own",
        ),
        (
            unicodedata.normalize("NFC", "café.jpg"),
            unicodedata.normalize("NFD", "café.jpg"),
            f"{unicodedata.normalize('NFC', 'café.jpg')!r}, with accents that are part of their letters",
        ),
    ],
)
def test_a_missing_image_is_told_with_what_is_nearly_the_same(coco, on_disk, written, told):
    (coco.images_dir / on_disk).parent.mkdir(exist_ok=True)
    coco.image(40, 60, name=on_disk)
    coco.tree["images"][0]["file_name"] = written
    text = refusal(coco)
    assert text.startswith("1 of 1 image files are missing, the first is ")
    assert text.endswith(f"; there is {told}; correct file_name")


def test_nothing_is_nearly_the_same_as_a_name_of_its_own(coco):
    path = coco.image(40, 60)
    assert near_name(coco.images_dir, str(path.with_name("other.jpg"))) is None
    assert near_name(coco.images_dir, str(path.parent / "nowhere" / "other.jpg")) is None


def test_a_name_with_a_line_break_is_told_in_one_line(coco):
    coco.image(40, 60)
    coco.tree["images"][0]["file_name"] = "a\nb.jpg"
    assert "a\\nb.jpg; check the image folder" in refusal(coco)


def test_an_absolute_name_inside_the_image_folder_is_taken(coco, tmp_path):
    path = coco.image(40, 60)
    coco.tree["images"][0]["file_name"] = str(path)
    assert coco.load().paths == [str(path)]
    link = tmp_path / "link"
    link.symlink_to(coco.images_dir)
    assert load_coco(coco.annotations_path, link).paths == [str(path)]

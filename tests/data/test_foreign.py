"""What other tools write is read as the same boxes; what cannot be read is named with file and line."""

import json
import sys
from pathlib import Path

import globox
import numpy as np
import pytest
from PIL import Image

from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.foreign.image_files import ImageFiles
from dh_keras.data.formats.foreign.reading import read_labelled, recognise
from dh_keras.errors import DataError

HEIGHT, WIDTH = 60, 80
VOC_BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
VOC_OBJECT = f"<object>\n<name>{{}}</name>\n{VOC_BOX}\n</object>"
VOC = "<annotation>\n<filename>{}</filename>\n<size><width>{}</width><height>{}</height></size>\n{}\n</annotation>\n"
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>
<image id="0" name="sub/a.jpg" width="80" height="60">
<box label="cat" xtl="10.5" ytl="20" xbr="30.25" ybr="50"/>
<polygon label="dog" points="1,2;11,2;6,22"/>
<points label="dog" points="1,2"/>
{}
</image>
<image id="1" name="b.jpg" width="80" height="60"/>
<image id="2" name="c.jpg" width="80" height="60"><box label="cat" xtl="1" ytl="1" xbr="5" ybr="5"/></image>
<image id="3" name="c.jpg" width="80" height="60"><box label="dog" xtl="2" ytl="1" xbr="5" ybr="5"/></image>
</annotations>
"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def photograph(path, *, orientation=1):
    """Write a file of HEIGHT rows and an EXIF tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30)).save(path, exif=exif)
    return path


def voc(path, *objects, filename="", size=(WIDTH, HEIGHT)):
    return write(path, VOC.format(filename, *size, "\n".join(VOC_OBJECT.format(*one) for one in objects)))


def boxes_of(found):
    """{name of the image: [(class, x, y, width, height)]}"""
    return {Path(image.path).name: [(box.name, *box.xywh) for box in image.boxes] for image in found.images}


@pytest.fixture
def voc_folder(tmp_path):
    """The layout of the devkit, with a box over the whole image and one of a single pixel."""
    for name in ("a", "b"):
        photograph(tmp_path / "JPEGImages" / f"{name}.jpg")
    voc(tmp_path / "Annotations" / "a.xml", ("dog", 1, 1, WIDTH, HEIGHT), ("cat", 11, 21, 11, 21))
    voc(tmp_path / "Annotations" / "b.xml", filename="b.jpg")
    return tmp_path


def test_corners_of_the_devkit_count_pixels_from_1_and_are_covered(voc_folder):
    found = read_labelled(voc_folder, voc_folder)
    assert found.format == "Pascal VOC"
    assert boxes_of(found) == {"a.jpg": [("dog", 0, 0, WIDTH, HEIGHT), ("cat", 10, 20, 1, 1)], "b.jpg": []}
    (theirs,) = [one for one in globox.AnnotationSet.from_pascal_voc(voc_folder / "Annotations") if one.boxes]
    assert [box.ltrb for box in theirs.boxes] == [(1, 1, WIDTH, HEIGHT), (11, 21, 11, 21)]  # as they stand in the file


def test_corners_below_1_are_no_pixels_counted_from_1(voc_folder):
    voc(voc_folder / "Annotations" / "b.xml", ("cat", 0, 5, 40, 30))
    found = read_labelled(voc_folder, voc_folder)
    assert boxes_of(found) == {
        "a.jpg": [("dog", 1, 1, WIDTH - 1, HEIGHT - 1), ("cat", 11, 21, 0, 0)],
        "b.jpg": [("cat", 0, 5, 40, 25)],
    }
    assert found.notes == ["corners are coordinates counted from 0: boxes begin below 1"]


def test_an_image_of_voc_is_that_of_the_same_name_else_the_one_that_is_named(tmp_path):
    for folder in ("train", "val"):
        photograph(tmp_path / folder / "a.jpg")
    photograph(tmp_path / "train" / "other.png")
    voc(tmp_path / "val" / "a.xml", ("cat", 1, 1, 2, 2), filename="wrong.jpg")
    voc(tmp_path / "train" / "c.xml", filename="other.png")
    found = read_labelled(tmp_path, tmp_path)
    assert [image.path for image in found.images] == [str(tmp_path / "train/other.png"), str(tmp_path / "val/a.jpg")]


def test_what_voc_has_wrong_is_named_with_file_and_line_and_the_rest_is_read(voc_folder):
    folder = voc_folder / "Annotations"
    voc(folder / "b.xml", ("cat", 1, 1, 9, 9), ("dog", "x", 1, 9, 9), ("dog", 9, 1, 5, 9), ("dog", 1, 1, "inf", 9))
    write(folder / "cut.xml", "<annotation>\n<filename>b.jpg")
    voc(folder / "lost.xml", ("cat", 1, 1, 9, 9), filename="lost.jpg")
    voc(folder / "wide.xml", filename="a.jpg", size=("wide", 60))
    voc(folder / "a2.xml", filename="a.jpg")
    found = read_labelled(voc_folder, voc_folder)
    expected = "expected a name, and a bndbox with numbers, xmin up to xmax and ymin up to ymax"
    assert sorted(found.faults) == [
        f"{folder}/a2.xml: is about {voc_folder}/JPEGImages/a.jpg, as {folder}/a.xml is already",
        f"{folder}/b.xml: line 12: {expected}",
        f"{folder}/b.xml: line 16: {expected}",
        f"{folder}/b.xml: line 8: {expected}",
        f"{folder}/cut.xml: line 2: no XML: no element found",
        f"{folder}/lost.xml: line 2: no image lost or 'lost.jpg', or more than one, below {voc_folder}",
        f"{folder}/wide.xml: line 3: expected width and height in whole pixels",
    ]
    assert boxes_of(found)["b.jpg"] == [("cat", 0, 0, 9, 9)]


@pytest.fixture
def yolo_folder(tmp_path):
    """Parts, an image without a file of boxes, and a photograph that its EXIF tag turns."""
    photograph(tmp_path / "images" / "train" / "a.jpg")
    photograph(tmp_path / "images" / "train" / "none.jpg")
    photograph(tmp_path / "images" / "val" / "turned.jpg", orientation=6)
    write(tmp_path / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.3 0.2 0.2 0.6\n")
    write(tmp_path / "labels" / "val" / "turned.txt", "0 0.5 0.5 1 1 0.9\n")
    write(tmp_path / "data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: {0: dog, 1: cat}\n")
    return tmp_path


def test_shares_of_yolo_become_pixels_of_the_upright_image(yolo_folder):
    found = read_labelled(yolo_folder, yolo_folder)
    boxes = boxes_of(found)
    assert [(name, *np.round(xywh, 9)) for name, *xywh in boxes["a.jpg"]] == [
        ("cat", 30, 15, 20, 30),
        ("dog", 8, 12, 16, 24),
    ]
    assert boxes["none.jpg"] == []
    assert boxes["turned.jpg"] == [("dog", 0, 0, HEIGHT, WIDTH)]
    assert [(image.part, image.size) for image in found.images] == [
        ("train", (HEIGHT, WIDTH)),
        ("train", (HEIGHT, WIDTH)),
        ("val", (WIDTH, HEIGHT)),
    ]
    assert found.classes == ["dog", "cat"]
    assert found.faults == []
    assert found.notes == ["1 images without a text file are taken as images without objects"]


def test_images_of_yolo_are_found_through_path_lists_and_dots(yolo_folder):
    (yolo_folder / "config").mkdir()
    lines = "./images/train/a.jpg\n" + str(yolo_folder / "images/train/none.jpg") + "\n./images/gone.jpg\n"
    write(yolo_folder / "list.txt", lines)
    text = "path: ..\ntrain: list.txt\nval: ../images/val\nnames: [dog, cat]\n"
    found = read_labelled(write(yolo_folder / "config" / "data.yaml", text), yolo_folder)
    assert [image.part for image in found.images] == ["train", "train", "val"]
    assert found.left_out == {f"images of list.txt that are not below {yolo_folder}": 1}


def test_lines_of_yolo_that_are_wrong_are_named(yolo_folder):
    path = yolo_folder / "labels" / "train" / "a.txt"
    lines = [
        "0 0.5 0.5 0.2 0.2",
        "7 0.5 0.5 0.2 0.2",
        "0 0.5 0.5 0.2",
        "cat 0 0 1 1",
        "0 0.5 0.5 -0.2 0.2",
        "0 x 0 1 1",
    ]
    write(path, "\n".join(lines))
    found = read_labelled(yolo_folder, yolo_folder)
    assert [fault.removeprefix(f"{path}: ")[:24] for fault in found.faults] == [
        "line 2: class '7', which",
        "line 3: expected a class",
        "line 4: class 'cat', whi",
        "line 5: expected a class",
        "line 6: expected a class",
    ]
    assert len(boxes_of(found)["a.jpg"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "data.yaml: line 1: no YAML: expected"),
        ("nc: 2", "data.yaml: expected names, a list of classes or one from their numbers"),
        ("train: gone\nnames: [a]", "data.yaml: train: gone: no such folder or list of images"),
    ],
)
def test_a_wrong_description_of_yolo_is_named(yolo_folder, text, message):
    path = write(yolo_folder / "data.yaml", text)
    with pytest.raises(DataError, match=message):
        read_labelled(path, yolo_folder)


def test_key_points_of_yolo_are_no_polygon(yolo_folder):
    write(yolo_folder / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.5 0.9 0.9 2 0.1 0.1 2")
    with (yolo_folder / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")
    assert boxes_of(read_labelled(yolo_folder, yolo_folder))["a.jpg"] == [("cat", 30, 15, 20, 30)]


def labelme(path, *shapes, image, **more):
    shapes = [{"label": label, "points": points, "shape_type": kind} for label, points, kind in shapes]
    content = {"version": "5", "shapes": shapes, "imagePath": image, "imageData": None} | more
    return write(path, json.dumps(content, indent=2))


def test_rectangles_and_polygons_of_labelme_are_boxes(tmp_path):
    photograph(tmp_path / "images" / "a.jpg")
    corners = [[30, 40], [10.5, 20]]  # in the order in which somebody drew them
    shapes = (("cat", corners, "rectangle"), ("dog", [[1, 2], [11, 2], [6, 22]], "polygon"), ("dog", [[3, 3]], "point"))
    labelme(tmp_path / "labels" / "a.json", *shapes, image="..\\images\\a.jpg", imageWidth=WIDTH, imageHeight=HEIGHT)
    found = read_labelled(tmp_path, tmp_path)
    assert found.format == "LabelMe"
    assert boxes_of(found) == {"a.jpg": [("cat", 10.5, 20, 19.5, 20), ("dog", 1, 2, 10, 20)]}
    assert found.left_out == {"point shapes": 1}
    assert found.images[0].size == (HEIGHT, WIDTH)


def test_what_labelme_has_wrong_is_named_with_file_and_line(tmp_path):
    photograph(tmp_path / "a.jpg")
    shapes = (("cat", [[1, 2], [3, 4]], "rectangle"), ("cat", [[1, 2], [3]], "rectangle"))
    path = labelme(tmp_path / "a.json", *shapes, image="a.jpg")
    line = path.read_text().splitlines().index('      "label": "cat",', 5) + 2
    labelme(tmp_path / "gone.json", image="gone.jpg")
    write(tmp_path / "cut.json", '{\n"shapes": [\n')
    found = read_labelled(tmp_path, tmp_path)
    assert len(boxes_of(found)["a.jpg"]) == 1
    assert found.faults[0] == f"{path}: line {line}: expected a shape with a label and points [[x, y], ...]"
    assert found.faults[1].startswith(f"{tmp_path}/cut.json: line 3: no JSON")
    assert found.faults[2].startswith(f"{tmp_path}/gone.json: line 4: no image 'gone.jpg'")


def test_boxes_and_polygons_of_cvat_are_read_and_images_without_any_kept(tmp_path):
    photograph(tmp_path / "images" / "sub" / "a.jpg")
    for name in ("b.jpg", "c.jpg"):
        photograph(tmp_path / "images" / name)
    wrong = '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5" rotation="30.00"/>\n<box label="cat" xtl="1"/>'
    path = write(tmp_path / "annotations.xml", CVAT.format(wrong))
    found = read_labelled(tmp_path, tmp_path)
    assert found.format == "CVAT for images"
    assert boxes_of(found) == {
        "a.jpg": [("cat", 10.5, 20, 19.75, 30), ("dog", 1, 2, 10, 20)],
        "b.jpg": [],
        "c.jpg": [("cat", 1, 1, 4, 4), ("dog", 2, 1, 3, 4)],
    }
    assert found.classes == ["dog", "cat"]
    assert found.left_out == {"points shapes": 1}
    expected = "expected an upright box with a label, and numbers, xtl up to xbr and ytl up to ybr"
    assert found.faults == [f"{path}: line 8: {expected}", f"{path}: line 9: {expected}"]


def test_tracks_of_a_video_are_refused_with_what_to_export(tmp_path):
    photograph(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", "<annotations>\n<track id='0' label='cat'/></annotations>")
    with pytest.raises(DataError, match=r"line 2: tracks of a video; export the task as 'CVAT for images 1\.1'"):
        read_labelled(tmp_path, tmp_path)


def test_rows_of_open_images_are_boxes_with_the_names_that_people_use(tmp_path):
    photograph(tmp_path / "images" / "0a1.jpg")
    write(tmp_path / "class-descriptions-boxable.csv", "/m/01,Tortoise\n/m/02,Cat\n")
    rows = [
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf",
        "0a1,xclick,/m/01,1,0.25,0.5,0.5,1,0,0",
        "0a1,xclick,/m/02,1,0,1,0,1,0,1",
        "0a1,xclick,/m/02,1,0.9,0.1,0,1,0,0",
        "beef,xclick,/m/02,1,0,1,0,1,0,0",
    ]
    path = write(tmp_path / "boxes.csv", "\n".join(rows))
    found = read_labelled(tmp_path, tmp_path)
    assert found.format == "Open Images"
    assert boxes_of(found) == {"0a1.jpg": [("Tortoise", 20, 30, 20, 30), ("Cat", 0, 0, WIDTH, HEIGHT)]}
    assert [box.crowd for box in found.images[0].boxes] == [False, True]
    assert found.left_out == {"rows of images that are not there": 1}
    expected = "expected a LabelName, and shares of the image, XMin up to XMax and YMin up to YMax"
    assert found.faults == [f"{path}: line 4: {expected}"]


def test_a_folder_of_two_formats_or_of_none_is_refused(voc_folder):
    assert recognise(voc_folder / "Annotations" / "a.xml")[0] == "Pascal VOC"
    with pytest.raises(DataError, match="JPEGImages: no annotations were recognised; expected one of Pascal VOC, YOLO"):
        recognise(voc_folder / "JPEGImages")
    write(voc_folder / "data.yaml", "names: [a]")
    with pytest.raises(DataError, match=r"holds Pascal VOC .*a.xml.* and YOLO .*data.yaml"):
        recognise(voc_folder)


def test_of_images_with_one_name_the_nearest_is_taken_or_none(tmp_path):
    for folder in ("one", "two/images"):
        photograph(tmp_path / folder / "a.jpg")
    images = ImageFiles(tmp_path)
    assert images.find("a.jpg", tmp_path / "two" / "labels" / "a.xml") == str(tmp_path / "two/images/a.jpg")
    assert images.find("a.jpg", tmp_path / "a.xml") is None
    assert images.find("one/a.jpg", tmp_path / "labels" / "a.xml") == str(tmp_path / "one/a.jpg")


def test_training_takes_a_folder_of_voc_as_it_takes_coco(voc_folder, capsys):
    train = load_coco(voc_folder / "Annotations", voc_folder / "JPEGImages")
    assert train.class_names == ("cat", "dog")
    assert [category.id for category in train.categories] == [1, 2]
    np.testing.assert_array_equal(train.boxes, [[0, 0, HEIGHT, WIDTH], [20, 10, 21, 11]])
    assert train.classes.tolist() == [1, 0]
    assert capsys.readouterr().out == (
        f"{voc_folder}/Annotations: Pascal VOC, 2 images, 2 boxes; corners are pixels counted from 1, as in the "
        "devkit: no box begins below 1\n"
    )
    voc(voc_folder / "val" / "a.xml", ("dog", 1, 1, 5, 5))  # no cat
    val = load_coco(voc_folder / "val", voc_folder / "JPEGImages", categories=train.categories)
    assert val.categories == train.categories
    assert val.classes.tolist() == [1]


def test_training_stops_at_what_cannot_be_read(voc_folder):
    voc(voc_folder / "Annotations" / "b.xml", ("dog", "x", 1, 9, 9))
    with pytest.raises(
        DataError, match=r"b.xml: line 4: expected .*; mend it, or let dh-keras import-data leave it out"
    ):
        load_coco(voc_folder / "Annotations", voc_folder / "JPEGImages")


def test_a_missing_library_is_named_with_what_to_install(yolo_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "globox", None)
    with pytest.raises(
        DataError, match=r"globox is needed to read what is no COCO JSON; pip install .*(globox|formats)"
    ):
        load_coco(yolo_folder / "data.yaml", yolo_folder / "images" / "train")


def test_a_source_without_a_box_is_refused_with_its_first_fault(voc_folder):
    for name in ("a", "b"):
        voc(voc_folder / "Annotations" / f"{name}.xml")
    with pytest.raises(DataError, match=f"{voc_folder}: Pascal VOC, and no box in it can be used: none is given for"):
        read_labelled(voc_folder, voc_folder)
    path = voc(voc_folder / "Annotations" / "a.xml", ("cat", 1, 1, "", 5))
    with pytest.raises(DataError, match=f"no box in it can be used: {path}: line 4: expected a name"):
        read_labelled(voc_folder, voc_folder)

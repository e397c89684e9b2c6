"""What `dh-keras import-data` writes passes the inspection; the split is seeded and parts no near-duplicates."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dh_keras.commands.import_data import main
from dh_keras.commands.inspect_data import main as inspect
from dh_keras.data.formats.coco import load_coco
from dh_keras.reports.data_doctor.splitting import choose_validation

SIDE = 96
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def scene(seed):
    """Return uint8[SIDE + 8, SIDE + 8, 3] of large patches, unlike those of other seeds."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(patches).resize((SIDE + 8, SIDE + 8), Image.Resampling.BICUBIC))


@pytest.fixture
def voc(tmp_path):
    """Ten scenes as in the devkit; the photographs 0 and 10 are of one, a little apart."""
    folder = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for number in range(11):
        pixels = scene(number % 10)[number // 2 :, number // 2 :][:SIDE, :SIDE]
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{number:02}.png")
        objects = OBJECT.format("cat" if number % 2 else "dog", 1, 1, 30 + number, 50)
        text = f"<annotation><size><width>{SIDE}</width><height>{SIDE}</height></size>{objects}</annotation>"
        (folder / "Annotations" / f"{number:02}.xml").write_text(text)
    return folder


def run(*words):
    """Call the command; return its exit status."""
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_output_passes_the_inspection_and_holds_every_box(voc, tmp_path, capsys):
    assert run(voc / "Annotations", "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "recognised: Pascal VOC, 11 images, 11 boxes; corners are pixels counted from 1" in printed
    tree = json.loads((tmp_path / "out" / "train.json").read_text())
    assert tree["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert tree["images"][10] == {"id": 11, "file_name": "10.png", "height": SIDE, "width": SIDE}
    assert tree["annotations"][1] == {
        "id": 2,
        "image_id": 2,
        "category_id": 1,
        "bbox": [0, 0, 31, 50],
        "area": 1550,
        "iscrowd": 0,
    }
    (command,) = [line for line in printed.splitlines() if line.startswith("next: ")]
    inspect([*command.split()[3:], "--output", str(tmp_path / "report")])  # would end with 1
    findings = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line[:5] in ("error", "warni")]
    assert findings == []
    assert len(load_coco(tmp_path / "out" / "train.json", voc / "JPEGImages").boxes) == 11


def names_of(path):
    return [row["file_name"] for row in json.loads(path.read_text())["images"]]


def test_a_split_is_seeded_and_near_duplicates_stay_together(voc, tmp_path, capsys):
    for name, seed in (("one", 3), ("again", 3), ("two", 4)):
        assert run(voc, "--output", tmp_path / name, "--val-share", "0.3", "--seed", seed) == 0
    assert "2 images that look like others are on one side with them" in capsys.readouterr().out
    val = {name: names_of(tmp_path / name / "val.json") for name in ("one", "again", "two")}
    assert val["one"] == val["again"] != val["two"]
    assert len(val["one"]) == len(val["two"]) == 3
    train = names_of(tmp_path / "one" / "train.json")
    assert sorted(train + val["one"]) == [f"{number:02}.png" for number in range(11)]
    paths = [str(voc / "JPEGImages" / f"{number:02}.png") for number in range(11)]
    for seed in range(40):
        chosen, alike = choose_validation(paths, share=0.3, seed=seed)
        assert alike == 2
        assert chosen[0] == chosen[10]
        assert chosen.sum() == 3
    load_coco(
        tmp_path / "one" / "val.json",
        voc / "JPEGImages",
        categories=load_coco(tmp_path / "one" / "train.json", voc / "JPEGImages").categories,
    )


def test_a_coco_file_is_split_with_its_areas_and_crowds(voc, tmp_path):
    assert run(voc, "--output", tmp_path / "out") == 0
    tree = json.loads((tmp_path / "out" / "train.json").read_text())
    tree["annotations"][0] |= {"area": 7.5, "iscrowd": 1}
    (tmp_path / "all.json").write_text(json.dumps(tree))
    images = ("--images", voc / "JPEGImages")
    assert run(tmp_path / "all.json", *images, "--output", tmp_path / "split", "--val-share", "0.5") == 0
    parts = [json.loads((tmp_path / "split" / f"{part}.json").read_text()) for part in ("train", "val")]
    rows = [row for part in parts for row in part["annotations"]]
    assert len(rows) == 11
    assert [(row["area"], row["iscrowd"]) for row in rows if row["bbox"][2] == 30] == [(7.5, 1)]
    assert all([row["id"] for row in part["images"]] == [*range(1, len(part["images"]) + 1)] for part in parts)


def test_what_cannot_be_read_is_named_and_left_out_and_ends_with_1(voc, tmp_path, capsys):
    (voc / "Annotations" / "03.xml").write_text("<annotation>\n<object></annotation>")
    (voc / "JPEGImages" / "04.png").write_bytes(b"no picture")
    text = (voc / "Annotations" / "05.xml").read_text()
    (voc / "Annotations" / "05.xml").write_text(text.replace(f"<width>{SIDE}", "<width>7"))
    assert run(voc, "--output", tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"left out: {voc}/Annotations/03.xml: line 2: no XML: mismatched tag"
    assert lines[1].startswith(f"left out: {voc}/Annotations/04.xml: image {voc}/JPEGImages/04.png: not an image")
    assert f"05.png: the file is {SIDE}x{SIDE} but its annotation says 7x{SIDE}" in lines[2]
    assert len(lines) == 3
    assert len(names_of(tmp_path / "out" / "train.json")) == 8


def test_the_parts_of_yolo_are_kept_and_not_split_again(voc, tmp_path, capsys):
    for number in range(6):
        part = "val" if number > 3 else "train"
        for kind, content in (("images", None), ("labels", "0 0.5 0.5 0.5 0.5\n")):
            (tmp_path / "yolo" / kind / part).mkdir(parents=True, exist_ok=True)
            if content:
                (tmp_path / "yolo" / kind / part / f"{number:02}.txt").write_text(content)
        shutil.copy(voc / "JPEGImages" / f"{number:02}.png", tmp_path / "yolo" / "images" / part)
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [box, never]\n")
    assert run(tmp_path / "yolo", "--output", tmp_path / "out") == 0
    assert names_of(tmp_path / "out" / "val.json") == ["val/04.png", "val/05.png"]
    assert len(names_of(tmp_path / "out" / "train.json")) == 4
    capsys.readouterr()
    assert run(tmp_path / "yolo", "--output", tmp_path / "two", "--val-share", "0.2") == 1
    assert "--val-share: " in (error := capsys.readouterr().err)
    assert "has parts of its own, train, val; leave the option out" in error
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--val-share", "1.5"), "--val-share: expected a share above 0 and below 1, such as 0.2, got 1.5"),
        (("--val-share", "0.2", "--seed", "-1"), "--seed: expected a number from 0 up, got -1"),
    ],
)
def test_a_wrong_option_is_one_line(voc, tmp_path, capsys, options, message):
    assert run(voc, "--output", tmp_path / "out", *options) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_images_of_one_scene_cannot_be_parted(tmp_path, capsys):
    (tmp_path / "voc").mkdir()
    for number in range(3):
        Image.fromarray(scene(0)).save(tmp_path / "voc" / f"{number}.png")
        (tmp_path / "voc" / f"{number}.xml").write_text(f"<annotation>{OBJECT.format('cat', 1, 1, 9, 9)}</annotation>")
    assert run(tmp_path / "voc", "--output", tmp_path / "out", "--val-share", "0.2") == 1
    assert "--val-share: the 3 images of" in capsys.readouterr().err

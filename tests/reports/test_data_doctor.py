"""Every kind of fault is found, and nothing else: findings, exit codes, reports and the cleaned file."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from dh_keras.commands.inspect_data import main
from dh_keras.config.load import load_config
from dh_keras.data.formats.coco import load_coco
from dh_keras.errors import DataError
from dh_keras.reports.data_doctor.fix import write_fixed
from dh_keras.reports.data_doctor.inspection import diagnose
from dh_keras.reports.data_doctor.kinds import KINDS

OVERRIDES = ("data.min_size=96", "data.max_size=128", "model.rpn.anchor_sizes=[16,32,64,128,256]")
# Kinds with tests of their own: of a whole file, or of numbers that are written in another way.
ELSEWHERE = {
    *("bad_category", "no_boxes", "refused", "large_category_id", "id_as_text", "box_from_polygon"),
    *("long_boxes", "boxes_as_shares", "boxes_as_corners", "more_boxes_than_detections"),
}


def run(*arguments):
    main([*map(str, arguments), *OVERRIDES])


def given(coco, prefix=""):
    return (f"--{prefix}annotations", coco.path, f"--{prefix}images", coco.folder)


@pytest.fixture(scope="module")
def diagnosis(faulty):
    return diagnose(
        faulty.train.path,
        faulty.train.folder,
        config=load_config(overrides=OVERRIDES),
        val_annotations=faulty.val.path,
        val_images=faulty.val.folder,
    )


@pytest.fixture(scope="module")
def of_kind(diagnosis):
    return lambda kind: [finding for finding in diagnosis.findings if finding.kind == kind]


def test_every_kind_that_can_stand_beside_others_is_found(diagnosis):
    assert {finding.kind for finding in diagnosis.findings} == KINDS.keys() - ELSEWHERE


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("missing_file", ["missing.jpg"]),
        ("unreadable_file", ["truncated.jpg", "text.jpg"]),
        ("unsupported_format", ["bitmap.jpg"]),
        ("wrong_extension", ["really_png.jpg"]),
        ("cmyk", ["cmyk.jpg"]),
        ("sixteen_bit", ["deep.png"]),
        ("exif_rotated", ["turned.jpg", "stored.jpg"]),
        ("boxes_not_upright", ["stored.jpg"]),
        ("wrong_size", ["resized.jpg"]),
        ("file_listed_twice", ["healthy.jpg"]),
        ("duplicate_image_id", ["healthy.jpg and same_id.jpg"]),
        ("bad_image_entry", ["{'id': 70, "]),
        ("near_duplicate_within", ["twin_a.jpg and twin_b.jpg"]),
        ("near_duplicate_across", ["train shared.jpg and val a.jpg"]),
        ("unused_category", ["ghost"]),
        ("category_in_one_split", ["ghost", "only here"]),
        ("duplicate_category", ["'<b>blob</b>' and 'twin' have the id 2", "the name 'cell'"]),
    ],
)
def test_exactly_the_faulty_files_and_categories_are_named(of_kind, kind, names):
    messages = [finding.message for finding in of_kind(kind)]
    assert len(messages) == len(names), messages
    assert all(name in message for name, message in zip(names, messages, strict=True)), messages


def test_images_without_boxes(of_kind):
    assert [finding.message for finding in of_kind("image_without_boxes")] == [
        "same_id.jpg",
        "empty.jpg",
        "healthy.jpg",
    ]


def test_exactly_the_faulty_boxes_are_named(of_kind, faulty):
    ids = faulty.ids
    expected = {
        "degenerate_box": [(ids.flat,), (ids.words,)],
        "box_outside": [(ids.outside,)],
        "crowd": [(ids.crowd,)],
        "tiny_box": [(ids.tiny,)],
        "boxed_twice": [ids.twice, ids.copies],
        "boxed_as_two_classes": [ids.two_classes],
        "duplicate_annotation_id": [(1,)],
        "bad_reference": [(ids.no_image,), (ids.no_category,)],
        "unusual_box": [(ids.large,)],
    }
    assert {kind: [finding.annotation_ids for finding in of_kind(kind)] for kind in expected} == expected
    assert "reaches 12 pixels out of 128x96" in of_kind("box_outside")[0].message
    assert "much larger than its class" in of_kind("unusual_box")[0].message
    unlearned = {number for finding in of_kind("no_anchor") for number in finding.annotation_ids}
    # The anchors of two boxes in one place all belong to the one they overlap more.
    assert unlearned == {ids.twice[1], ids.two_classes[1], ids.copies[1]}


def test_the_refusal_is_the_message_of_training(diagnosis, faulty):
    with pytest.raises(ValueError, match="two categories have the id 2") as error:
        load_coco(faulty.train.path, faulty.train.folder)
    assert diagnosis.refusal == str(error.value)


def test_the_script_reports_and_exits_with_1(faulty, tmp_path, capsys):
    before = hashlib.sha256(faulty.train.path.read_bytes()).digest()
    out, fixed = tmp_path / "report", tmp_path / "fixed.json"
    arguments = (*given(faulty.train), *given(faulty.val, "val-"), "--output", out, "--fix", fixed)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.strip().splitlines()[-1].startswith("error: training would fail: annotations")
    assert re.search(r"^error +2  image file cannot be decoded", shown.out, re.M)
    assert hashlib.sha256(faulty.train.path.read_bytes()).digest() == before
    check_page((out / "report.html").read_text())
    report = json.loads((out / "report.json").read_text())
    assert {row["kind"]: row["count"] for row in report["summary"]}["degenerate_box"] == 2
    assert report["splits"][0]["classes"]["ghost"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.json", "report"]
    check_fixed(faulty, fixed, shown.out)


def check_page(page):
    addresses = re.findall(r"(?:src|href)=(.{6})", page)
    assert len(addresses) > 40
    assert {address[:2] for address in addresses} == {'"#', '"d'}
    assert {address for address in addresses if address[1] == "d"} == {'"data:'}
    assert "http" not in re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page)
    assert "&lt;b&gt;blob&lt;/b&gt;" in page
    assert "<b>blob</b>" not in page


def check_fixed(faulty, path, shown):
    """Training takes the file as it is, and it has what was good in the old one."""
    dataset = load_coco(path, faulty.train.folder)
    healthy = {"images", "boxes", "crowd", "empty_images", "exif_rotated", "files_listed_twice"}
    assert {name: count for name, count in dataset.counts.items() if count and name not in healthy} == {}
    tree = json.loads(path.read_text())
    names = [row["file_name"] for row in tree["images"]]
    assert not {"missing.jpg", "truncated.jpg", "text.jpg", "bitmap.jpg"} & set(names)
    assert len(names) == len(faulty.train.tree["images"]) - 5
    assert tree["info"] == {"year": 2026}
    assert [row["name"] for row in tree["categories"]] == ["cell", "<b>blob</b>", "ghost", "twin"]
    rows = {row["id"]: row for row in tree["annotations"]}
    assert rows[faulty.ids.outside]["bbox"] == [100, 60, 28, 36]
    assert rows[faulty.ids.outside]["area"] == 28 * 36
    assert not {faulty.ids.flat, faulty.ids.words, faulty.ids.copies[1], faulty.ids.no_image} & rows.keys()
    resized = next(row for row in tree["images"] if row["file_name"] == "resized.jpg")
    assert (resized["height"], resized["width"]) == (96, 128)
    scaled = [row["bbox"] for row in rows.values() if row["image_id"] == resized["id"]]
    np.testing.assert_allclose(scaled, [[75, 50, 40, 35]])
    stored = next(row for row in tree["images"] if row["file_name"] == "stored.jpg")
    assert (stored["height"], stored["width"]) == (96, 128)
    assert [row["bbox"] for row in rows.values() if row["image_id"] == stored["id"]] == [[60, 20, 60, 40]]
    untouched = faulty.train.tree["annotations"][0]
    assert rows[1] == untouched
    assert re.search(r"^ +1  exact copies of boxes left out$", shown, re.M)


def test_a_fixed_file_has_nothing_left_to_fix(diagnosis, faulty, tmp_path):
    fixed = tmp_path / "fixed.json"
    assert write_fixed(diagnosis.splits[0], fixed)["annotations renumbered"] == 1
    again = diagnose(fixed, faulty.train.folder, config=load_config(overrides=OVERRIDES))
    assert again.refusal is None
    assert not [finding for finding in again.findings if KINDS[finding.kind].severity == "error"]
    assert write_fixed(again.splits[0], tmp_path / "again.json") == {}
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(fixed.read_text())


def test_nothing_to_train_on_is_refused_and_not_written(make_coco, tmp_path):
    coco = make_coco(tmp_path, "bare", [(1, "cell"), ("two", "text")])
    coco.image("one.jpg", boxes=((5, 5, 0, 9, 1),))
    found = diagnose(coco.write().path, coco.folder, config=load_config(overrides=OVERRIDES))
    errors = {finding.kind for finding in found.findings if KINDS[finding.kind].severity == "error"}
    assert errors == {"bad_category", "no_boxes"}
    with pytest.raises(DataError, match="no image with a box is left; nothing was written"):
        write_fixed(found.splits[0], tmp_path / "fixed.json")
    assert not (tmp_path / "fixed.json").exists()


def test_augmented_batches_are_shown(tiny_shapes, tmp_path, capsys):
    run(
        "--annotations",
        tiny_shapes.train_annotations,
        "--images",
        tiny_shapes.train_images,
        "--output",
        tmp_path / "report",
        "--augmented",
        2,
        "data.batch_size=3",
    )
    page = (tmp_path / "report" / "report.html").read_text()
    assert (page.count("<figcaption>batch 1: "), page.count("<figcaption>batch 2: ")) == (3, 3)


def test_healthy_data_passes_without_tensorflow(make_coco, tmp_path):
    coco = make_coco(tmp_path, "healthy", [(1, "cell")])
    coco.image("one.jpg")
    coco.write()
    line = ["--annotations", str(coco.path), "--images", str(coco.folder), "--output", "out", *OVERRIDES]
    code = f"""
import sys
from dh_keras.commands.inspect_data import main
main({line!r})
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to complain about" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()


# Bad input: one line.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--annotations": "nowhere.json"}, "nowhere.json: no such file"),
        ({"--annotations": "list.json"}, "expected a JSON object, got list"),
        ({"--images": "nowhere"}, "nowhere: no such folder"),
        ({"--images": "empty"}, "empty: is empty"),
        ({"--output": "empty"}, "empty: exists already"),
        ({"--output": "list.json/report"}, "cannot be written"),
        ({"--fix": "list.json"}, "list.json: exists already"),
        ({"--val-annotations": "list.json"}, "give both or none"),
        ({"--augmented": "-1"}, "expected 0 or more, got -1"),
    ],
)
def test_bad_input_is_one_line(make_coco, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    coco = make_coco(tmp_path, "healthy", [(1, "cell")])
    coco.image("one.jpg")
    coco.write()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[]")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    options = {"--annotations": coco.path, "--images": coco.folder, "--output": "report"} | change
    with pytest.raises(SystemExit) as stopped:
        run(*(word for pair in options.items() for word in pair))
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_disk_that_is_full_is_one_line(make_coco, tmp_path, monkeypatch, capsys, small_files):
    monkeypatch.chdir(tmp_path)
    coco = make_coco(tmp_path, "healthy", [(1, "cell")])
    coco.image("one.jpg")
    coco.write()
    small_files()
    with pytest.raises(SystemExit):
        run("--annotations", coco.path, "--images", coco.folder, "--output", "report", "--fix", "fixed.json")
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: report/report.json: cannot be written: File too large; ")
    assert not list(tmp_path.glob("*report*"))
    assert not (tmp_path / "fixed.json").exists()

"""What analyze writes into a run folder, that its numbers are evaluate's, and what it refuses in one line."""

import csv
import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dh_keras.commands.main import main
from dh_keras.data.formats.coco import load_coco
from dh_keras.errors import ConfigError, DataError
from dh_keras.inference.detector import Detector
from dh_keras.inference.evaluation import evaluate_detector
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.reports import run_report
from dh_keras.reports.curves import best_row, draw_curves, draw_losses, read_metrics
from dh_keras.reports.model_card import describe_licence
from dh_keras.reports.plotting import new_figure
from dh_keras.reports.run_report import analyze_run
from dh_keras.run.run_folder import open_run
from dh_keras.run.weights import load_weights

WRITTEN = {"curves.png", "pr_curves.png", "confusion_matrix.png", "per_class.csv", "model_card.md", "worst", "best"}
WEIGHTS = dict.fromkeys(LOSS_NAMES, 1.0)


@pytest.fixture(scope="module")
def own_boxes(tiny_run, tiny_shapes, tmp_path_factory):
    """A detector, and annotations that its own detections partly fit, as it has learnt nothing in two epochs."""
    detector = Detector.load(tiny_run)
    tree = json.loads(Path(tiny_shapes.val_annotations).read_text())
    dataset = load_coco(tiny_shapes.val_annotations, tiny_shapes.val_images, categories=detector.categories)
    rng, annotations = np.random.default_rng(0), []
    for entry in detector.detect_dataset(dataset)["detections"]:
        for row in rng.choice(len(entry.scores), 4, replace=False):
            y1, x1, y2, x2 = (entry.boxes[row] + rng.uniform(-1, 1, 4)).clip(0).tolist()
            if x2 > x1 and y2 > y1:
                box = {"image_id": int(entry.image_id), "category_id": int(dataset.category_ids[entry.classes[row]])}
                annotations.append({"id": len(annotations) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], **box})
    path = tmp_path_factory.mktemp("own") / "boxes.json"
    path.write_text(json.dumps({**tree, "annotations": annotations, "licenses": [{"name": "CC0", "url": "there"}]}))
    return detector, path


@pytest.fixture(scope="module")
def analyzed(tiny_run, own_boxes, tiny_shapes, tmp_path_factory):
    """A copy of the tiny run that was analysed on those annotations, and the metrics."""
    detector, annotations = own_boxes
    run = tmp_path_factory.mktemp("analyzed") / "my | run"
    shutil.copytree(tiny_run, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report.ModelDetector, "from_run", lambda *arguments: detector)  # it is traced already
        metrics = analyze_run(run, annotations=annotations, images=tiny_shapes.val_images, score=0.1)
    return run, metrics


def test_everything_is_written_and_nothing_else_is_touched(tiny_run, analyzed):
    run, _ = analyzed
    assert {path.name for path in run.iterdir()} == {path.name for path in tiny_run.iterdir()} | WRITTEN
    for path in tiny_run.rglob("*"):
        if path.is_file():
            assert (run / path.relative_to(tiny_run)).read_bytes() == path.read_bytes()
    for picture in ("curves.png", "pr_curves.png", "confusion_matrix.png", "worst/1.png", "best/3.png"):
        with Image.open(run / picture) as image:
            image.load()
            assert image.width > image.height > 400
            assert len(set(image.convert("L").resize((50, 50)).getdata())) > 10
    assert sorted(path.name for path in (run / "worst").iterdir()) == ["1.png", "2.png", "3.png"]


def test_the_numbers_are_those_of_the_evaluation_and_of_training(tiny_run, own_boxes, analyzed, tiny_shapes):
    detector, annotations = own_boxes
    run, metrics = analyzed
    dataset = load_coco(annotations, tiny_shapes.val_images, categories=detector.categories)
    expected = evaluate_detector(detector, dataset)
    assert 0.05 < expected["AP"] < 0.95
    assert metrics == expected
    opened = open_run(tiny_run)
    model = assemble_detector(opened.config.model, num_classes=3)
    load_weights(model, opened.weights)
    # Training evaluates the network as it is; here its batch norms are folded, which rounds differently.
    as_trained = Detector.from_model(model, opened.categories, min_size=96, max_size=128)
    in_training = evaluate_detector(as_trained, dataset, batch_size=2)
    assert metrics["AP"] == pytest.approx(in_training["AP"], abs=0.02)
    with open(run / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, (name, of_class) in zip(rows, expected["per_class"].items(), strict=True):
        assert (row["class"], row["boxes"]) == (name, str(of_class["boxes"]))
        for key in ("AP", "AP50", "AP75"):
            assert (float(row[key]) if row[key] else None) == pytest.approx(of_class[key], abs=1e-5)


def test_the_card_states_data_results_versions_commands_and_limits(analyzed, own_boxes):
    run, metrics = analyzed
    card = (run / "model_card.md").read_text()
    total = sum(of_class["boxes"] for of_class in metrics["per_class"].values())
    numbers = [metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")]
    shown = " | ".join("n/a" if number is None else f"{number:.3f}" for number in numbers)
    for part in (
        "# my \\| run",
        f"Measured on 6 images with {total} boxes: AP {metrics['AP']:.3f}",
        f"| {shown} | 6 |",
        "12 images, 1 of them without a box",
        "| all | 52 |",
        f"--annotations {own_boxes[1]}",
        "The best of 2 evaluations during training: AP 0.000 after epoch 1 (7 steps)",
        "as `boxes.json` says: CC0 there.",
        "| `model.variant` | `double_head` |",
        "TensorFlow 2.20",
        "Learnt from few boxes (fewer than 100 each): circle 17, square 15, triangle 20.",
    ):
        assert part in card, part
    assert "chose the best weights" not in card  # these annotations did not
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.count("|") - line.count("\\|") >= 3 and line.endswith("|") for line in tables)
    assert "None" not in card


def test_running_again_replaces_its_own_pictures_only(analyzed, own_boxes, tiny_shapes, monkeypatch):
    run, _ = analyzed
    detector, annotations = own_boxes
    monkeypatch.setattr(run_report.ModelDetector, "from_run", lambda *arguments: detector)
    monkeypatch.setattr(type(detector), "detect_dataset", lambda *a, **k: pytest.fail("detected before it was read"))
    note = run / "worst" / "note.txt"
    note.write_text("mine")
    (run / "worst" / "6.png").write_bytes(b"of an earlier time")
    found = {"detections": []}
    monkeypatch.setattr(run_report, "detect_with_bar", lambda *arguments, **options: found)
    dataset = load_coco(annotations, tiny_shapes.val_images, categories=detector.categories)
    nothing = detector(np.zeros((96, 96, 3), np.uint8)).above(1.0)
    found["detections"] = [replace(nothing, image_id=int(image_id)) for image_id in dataset.image_ids]
    assert analyze_run(run, annotations=annotations, images=tiny_shapes.val_images)["AP"] == 0
    assert note.read_text() == "mine"
    assert not (run / "worst" / "6.png").exists()
    assert not list(run.rglob(".partial-*"))
    assert "AP 0.000, AP50 0.000" in (run / "model_card.md").read_text()


def copy_of(run, tmp_path, without=()):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*without))
    return copy


def replace_in_config(run, *pairs):
    text = (run / "config.yaml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (run / "config.yaml").write_text(text)


def test_what_cannot_be_analysed_is_refused_in_one_line(tiny_run, tiny_shapes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not a run folder"):
        analyze_run(tmp_path / "empty")
    bare = copy_of(tiny_run, tmp_path, ("*.h5",))
    with pytest.raises(DataError, match=r"has no best\.weights\.h5 or last\.weights\.h5"):
        analyze_run(bare)
    with pytest.raises(DataError, match="--annotations: needs --images"):
        analyze_run(tiny_run, annotations=tiny_shapes.val_annotations)
    with pytest.raises(ConfigError, match=r"model\.variant"):
        analyze_run(tiny_run, overrides=["model.variant=triple"])


def test_a_run_whose_data_is_gone_or_was_never_there_names_the_options(tiny_run, tiny_shapes, tmp_path):
    moved = copy_of(tiny_run, tmp_path)
    folder = str(Path(tiny_shapes.val_images).parent)
    replace_in_config(moved, (folder, str(tmp_path / "gone")))
    with pytest.raises(DataError, match=r"gone/.*no such file.*; if the data has moved, give --annotations") as error:
        analyze_run(moved)
    assert "\n" not in str(error.value)
    null = [(f"{name}: {value}", f"{name}: null") for name, value in vars(tiny_shapes).items()]
    unvalidated = copy_of(tiny_run, tmp_path / "u")
    replace_in_config(unvalidated, *null[2:])
    with pytest.raises(DataError, match="was trained without validation images; give --annotations"):
        analyze_run(unvalidated)
    converted = copy_of(tiny_run, tmp_path / "c", ("metrics.csv",))
    replace_in_config(converted, *null)
    (converted / "classes.json").write_text(json.dumps([{"id": k, "name": f"thing {k}"} for k in (1, 2, 3)]))
    with pytest.raises(DataError, match="config names no data, as those of converted checkpoints; give --annotations"):
        analyze_run(converted)


def test_annotations_without_a_box_are_refused(tiny_run, tiny_shapes, tmp_path):
    tree = json.loads(Path(tiny_shapes.val_annotations).read_text())
    path = tmp_path / "nothing.json"
    path.write_text(json.dumps({**tree, "annotations": []}))
    with pytest.raises(DataError, match=r"nothing\.json: has no boxes to evaluate on"):
        analyze_run(tiny_run, annotations=path, images=tiny_shapes.val_images)


def table(tmp_path, *rows, header=None):
    path = tmp_path / "metrics.csv"
    columns = ["step", "epoch", *LOSS_NAMES, "total_loss", "lr", "images_per_second", "data_wait", "AP", "AP50", "AP75"]
    path.write_text("\n".join([",".join(header or columns), *rows]) + "\n")
    return path


def row_of(epoch, ap):
    return ",".join([str(10 * epoch), str(epoch), *["0.5"] * 6, "2.5", "0.01", "20", "0.1", *[ap] * 3])


def test_the_metrics_table_is_read_and_its_best_row_is_the_first_of_the_highest_ap(tmp_path):
    rows = read_metrics(table(tmp_path, row_of(1, "0.2"), row_of(2, "0.4"), row_of(3, "0.4"), row_of(4, "")))
    assert [row["AP"] for row in rows] == [0.2, 0.4, 0.4, None]
    assert best_row(rows)["epoch"] == 2
    assert best_row(rows[3:]) is None
    draw_curves(tmp_path / "curves.png", rows[3:], WEIGHTS, [2, 9])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1320, 880)


def test_a_run_that_was_resumed_only_to_be_evaluated_has_curves_without_a_speed(tmp_path):
    untimed = row_of(1, "0.2").replace("0.01,20,0.1,", "0.01,,,")
    rows = read_metrics(table(tmp_path, untimed))
    assert (rows[0]["images_per_second"], rows[0]["data_wait"], rows[0]["AP"]) == (None, None, 0.2)
    draw_curves(tmp_path / "curves.png", rows, WEIGHTS, [])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1320, 880)


def test_losses_on_validation_images_are_drawn_dashed_in_the_colour_of_those_in_training(tiny_run):
    rows = read_metrics(tiny_run / "metrics.csv")
    axes = new_figure(6, 4, "").subplots()
    draw_losses(axes, rows, WEIGHTS)
    solid = [line for line in axes.lines if not line.is_dashed()]
    dashed = [line for line in axes.lines if line.is_dashed()]
    assert len(solid) == len(dashed) == 5  # four losses of the double head, and the total
    assert [line.get_color() for line in dashed] == [line.get_color() for line in solid]
    for line, name in zip(dashed, ("rpn_objectness", "rpn_box", "fc_class", "conv_box", "total"), strict=True):
        assert line.get_ydata().tolist() == [row[f"val_{name}_loss"] for row in rows]
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(entries) == 6
    assert entries[-1] == "dashed: on validation images"


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([], None, r"metrics\.csv: has no row yet"),
        ([], ["a", "b"], "expected the columns of a training run, epoch, step, .* missing"),
        ([row_of(1, "0.2"), row_of(2, "much")], None, "line 3: expected numbers: .*'much'"),
        ([row_of(1, "0.2"), "20,2,0.5"], None, "line 3: cut off"),
    ],
)
def test_a_metrics_table_that_cannot_be_read_is_named_with_the_line(tmp_path, rows, header, message):
    with pytest.raises(DataError, match=message):
        read_metrics(table(tmp_path, *rows, header=header))


def test_a_licence_that_nobody_stated_is_unknown_and_generated_data_has_none(tiny_run, tiny_shapes, tmp_path):
    dataset = load_coco(tiny_shapes.val_annotations, tiny_shapes.val_images)
    config = open_run(tiny_run).config
    assert describe_licence(config, dataset).startswith("unknown; `instances_val.json` names none")


@pytest.mark.parametrize(
    ("strategy", "index", "change", "expected"),
    [
        ("none", 1, "", True),
        ("multi_worker", 0, "", True),
        ("multi_worker", 1, "", False),
        ("none", 0, "data.val_annotations=null data.val_images=null", False),
    ],
)
def test_the_chief_analyses_what_it_trained(tiny_run, monkeypatch, strategy, index, change, expected):
    workers = {"worker": ["localhost:1001", "localhost:1002"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": workers, "task": {"type": "worker", "index": index}}))
    trained, analysed = [], []

    def train(config, *, output, **options):
        trained.append(options)
        return dataclasses.replace(open_run(tiny_run), config=config)

    monkeypatch.setattr("dh_keras.training.loop.train", train)
    monkeypatch.setattr("dh_keras.reports.run_report.analyze_run", analysed.append)
    line = ["--config", str(tiny_run / "config.yaml"), "--strategy", strategy, "--output", "unused", *change.split()]
    main(["train", *line])
    assert [options["strategy"] for options in trained] == [strategy]
    assert analysed == [tiny_run] * expected


def test_a_score_that_cannot_be_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", str(tmp_path), "--score", "2"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: --score: expected a number from 0 to below 1, got 2.0\n"

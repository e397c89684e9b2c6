"""Scores that are worth showing: from a run's table of classes into predictions and the export."""

import json
import shutil

import numpy as np
import pytest

from dh_keras.commands.main import main
from dh_keras.errors import DataError
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.detector import Detector
from dh_keras.inference.drawing import describe_score, draw_detections
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import open_run
from dh_keras.run.scores import CLASSES_TABLE, read_best_scores, scores_of

pytestmark = pytest.mark.usefixtures("quick_graphs")
HEADER = "class,category_id,boxes,AP,AP50,AP75,best_f1,score,precision,recall\n"
CLASSES = (Category(1, "circle"), Category(3, "square"), Category(7, "triangle"))


def test_scores_are_read_by_category_id_rounded_down_and_half_where_nothing_is_known(tmp_path):
    assert read_best_scores(tmp_path) == {}
    rows = 'triangle,7,5,0.1,0.2,0.1,0.5,0.61278,0.4,0.6\n"a, b",1,5,0.1,0.2,0.1,0.5,0.2,0.4,0.6\nsquare,3,0,,,,,,,\n'
    (tmp_path / CLASSES_TABLE).write_text(HEADER + rows)
    best = read_best_scores(tmp_path)
    assert best == {7: 0.612, 1: 0.2}
    assert scores_of(CLASSES, best) == (0.2, 0.5, 0.612)


@pytest.mark.parametrize("row", ["x,one,5,0,0,0,0,0.5,0,0", "x,1,5,0,0,0,0,much,0,0", "x,1,5,0,0,0,0,1.5,0,0", "x"])
def test_a_damaged_table_is_named(tmp_path, row):
    (tmp_path / CLASSES_TABLE).write_text(f"{HEADER}{row}\n")
    with pytest.raises(DataError, match=rf"^{tmp_path}/per_class\.csv: is damaged: .*; remove it, or write it again"):
        read_best_scores(tmp_path)


def test_a_damaged_table_can_be_written_again_as_the_message_says(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / CLASSES_TABLE).write_text(f"{HEADER}x\n")
    with pytest.raises(DataError, match="write it again by analyze"):
        Detector.load(tmp_path / "run")
    main(["analyze", str(tmp_path / "run")])
    assert len(read_best_scores(tmp_path / "run")) <= len(open_run(tmp_path / "run").categories)
    Detector.load(tmp_path / "run")


def test_detections_are_shown_by_the_score_of_their_class():
    found = ImageDetections(
        boxes=np.array([[10, 10, 50, 50]] * 4, np.float32),
        scores=np.array([0.9, 0.6, 0.4, 0.3], np.float32),
        classes=np.array([2, 1, 1, 0], np.int32),
        known=CLASSES,
    )
    assert found.above((0.2, 0.5, 0.95)).scores.tolist() == pytest.approx([0.6, 0.3])
    assert found.above(0.5).scores.tolist() == pytest.approx([0.9, 0.6])
    image = np.full((80, 80, 3), 90, np.uint8)
    np.testing.assert_array_equal(
        draw_detections(image, found, score_threshold=(0.2, 0.5, 0.95)),
        draw_detections(image, found.above((0.2, 0.5, 0.95)), score_threshold=0.0),
    )
    assert describe_score(0.5) == describe_score((0.5, 0.5)) == "0.50"
    assert describe_score((0.2, 0.5, 0.95)) == "the best of its class (0.20 to 0.95)"


def test_a_run_and_its_export_show_by_the_scores_of_its_table(tiny_run, tiny_shapes, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    photograph = sorted(tiny_shapes.val_images.iterdir())[0]
    first = Detector.load(run)(photograph)
    limits = {category.id: 0.0 for category in open_run(run).categories}
    limits[int(first.category_ids[0])] = 0.999
    lines = [f"x,{number},5,0,0,0,0,{score},0,0" for number, score in limits.items()]
    (run / CLASSES_TABLE).write_text(HEADER + "\n".join(lines) + "\n")
    main(["export", str(run), "--output", str(tmp_path / "model" / "1")])
    expected = first.above(tuple(limits.values())).as_dicts()
    assert 0 < len(expected) < len(first)
    assert Detector.load(tmp_path / "model" / "1").best_scores == tuple(limits.values())
    main(["predict", str(run), str(photograph), "--output", str(tmp_path / "found"), "--no-pictures"])
    assert "score above the best of its class (0.00 to 1.00)" in capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())[0]["detections"]
    assert [row["category"] for row in found] == [row["category"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], atol=1e-3)

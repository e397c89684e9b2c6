"""The comparison of the heads end to end on tiny models, its probe against plain arithmetic, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from numpy_boxes import clip, decode, iou
from PIL import Image

from dh_keras.commands.analyze_heads import main
from dh_keras.config.load import load_config
from dh_keras.data.formats.coco import load_coco, read_categories
from dh_keras.errors import DataError, WriteError
from dh_keras.inference.photographs import read_image
from dh_keras.modeling.builder import assemble_detector
from dh_keras.reports.heads import analysis as head_analysis
from dh_keras.reports.heads.analysis import HeadMeasurements, analyze_heads, summarize_heads
from dh_keras.reports.heads.probe import HeadProbe
from dh_keras.reports.heads.sliding_windows import sliding_windows
from dh_keras.reports.heads.statistics import bin_statistics
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import open_run, write_run
from dh_keras.run.weights import save_weights

FIGURES = ("box_iou", "feature_correlation", "pearson_by_size", "score_against_iou", "weight_correlation")


def run(*arguments):
    main([*map(str, arguments)])


def make_run(path, overrides, categories):
    """A run folder as after a training that learned nothing, and its model."""
    config = load_config(overrides=list(overrides))
    write_run(path, config, categories)
    model = assemble_detector(config.model, num_classes=len(categories))
    save_weights(model, path / "best.weights.h5")
    return model


@pytest.fixture(scope="module")
def given(tiny_shapes):
    return {"annotations": tiny_shapes.val_annotations, "images": tiny_shapes.val_images}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_overrides, tiny_shapes):
    """The models of the three variants whose heads can be compared, by their run folders."""
    folder = tmp_path_factory.mktemp("heads")
    categories = read_categories(tiny_shapes.val_annotations)
    small = (*tiny_overrides, "model.conv_head.non_local.channels=4", "model.conv_head.non_local.groups=2")
    return {
        folder / variant: make_run(folder / variant, [*small, f"model.variant={variant}"], categories)
        for variant in ("double_head_ext", "single_fc", "single_conv")
    }


@pytest.fixture(scope="module")
def runs(models):
    """The folder of the run folders, which have the names of their variants."""
    return next(iter(models)).parent


@pytest.fixture(scope="module")
def make_probe():
    """`HeadProbe`, but once for each run: most of the time would go into tracing the same model again."""
    made = {}

    def make(run):
        if run.path not in made:
            made[run.path] = HeadProbe(run)
        return made[run.path]

    return make


@pytest.fixture(autouse=True)
def reuse_probes(monkeypatch, make_probe):
    monkeypatch.setattr(head_analysis, "HeadProbe", make_probe)


@pytest.fixture
def probe(make_probe, runs):
    return make_probe(open_run(runs / "double_head_ext"))


def test_answers_equal_the_heads_outputs_in_plain_arithmetic(models, runs, given, probe):
    dataset = load_coco(**given)
    image, boxes, classes = read_image(dataset.paths[0]), dataset.boxes_of(0), dataset.classes_of(0)
    windows = boxes + np.array([3.0, -4.0, 6.0, 2.0], np.float32)
    answers = probe.judge(probe.open_image(image), windows, boxes, classes)

    config = probe.run.config
    model = models[runs / "double_head_ext"]
    scale = min(config.data.min_size / min(image.shape[:2]), config.data.max_size / max(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    resized = tf.cast(tf.round(tf.image.resize(image, (height, width))), tf.uint8)
    canvas = tf.pad(resized, [[0, -height % 32], [0, -width % 32], [0, 0]])[None]
    factors = np.tile([height / image.shape[0], width / image.shape[1]], 2)
    rois = np.float32(windows * factors)
    batch = {"images": canvas, "image_sizes": tf.constant([[height, width]])}
    pyramid = model.extract_features(batch, training=False)
    outputs = model.run_heads(pyramid, tf.constant(rois), tf.zeros(len(rois), tf.int32), training=False)
    for kind in ("fc", "conv"):
        logits = outputs[f"{kind}_class_logits"].numpy().astype(np.float64)
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        scores = probs[np.arange(len(rois)), classes]
        deltas = outputs[f"{kind}_box_deltas"].numpy()[np.arange(len(rois)), classes]
        moved = [clip(decode(d, roi, (10, 10, 5, 5)), height, width) for d, roi in zip(deltas, rois, strict=True)]
        ious = [iou(box, truth * factors) for box, truth in zip(moved, boxes, strict=True)]
        np.testing.assert_allclose(answers[kind], [scores, ious], atol=2e-4)


def test_cell_maps_add_up_to_what_the_heads_compute(given, probe):
    dataset = load_coco(**given)
    opened, boxes = probe.open_image(read_image(dataset.paths[0])), dataset.boxes_of(0)
    maps = probe.cell_maps(opened, boxes)
    rois = tf.constant(boxes * opened.factors)
    image_index = tf.zeros(len(rois), tf.int32)
    features = probe.model.roi_align["fc"](opened.pyramid, rois, image_index, training=False)
    fc1 = probe.model.heads["fc_head"].fc1
    expected = fc1(tf.reshape(features, [len(rois), -1]))
    np.testing.assert_allclose(np.maximum(maps["fc"].sum(axis=1) + fc1.bias, 0), expected, atol=1e-4)
    for place in (0, 10, 48):  # cells are in rows, and see their own slice of the layer
        alone = np.zeros_like(features).reshape(len(rois), 49, -1)
        alone[:, place] = features.numpy().reshape(alone.shape)[:, place]
        np.testing.assert_allclose(
            maps["fc"][:, place], alone.reshape(len(rois), -1) @ fc1.kernel.numpy(), atol=1e-4, rtol=1e-4
        )
    outputs = probe.model.run_heads(opened.pyramid, rois, image_index, training=False)
    predicted = probe.model.heads["conv_head"].predictors(tf.constant(maps["conv"].mean(axis=1)))
    np.testing.assert_allclose(predicted["class_logits"], outputs["conv_class_logits"], atol=1e-5)


def test_weight_correlations_equal_a_direct_loop(probe):
    found = probe.weight_correlations()
    kernel = probe.model.heads["fc_head"].fc1.kernel.numpy().reshape(7, 7, 16, 16)
    direct = np.corrcoef(kernel[2, 3].ravel(), kernel[6, 1].ravel())[0, 1]
    np.testing.assert_allclose(found["fc"][2 * 7 + 3, 6 * 7 + 1], direct, atol=1e-6)
    head = probe.model.heads["conv_head"]
    kernels = [layer.conv.kernel.numpy() for layer in (head.up_block.conv1, head.bottlenecks[0].convs[1])]
    direct = np.mean([np.corrcoef(k[0, 1].ravel(), k[2, 2].ravel())[0, 1] for k in kernels])
    assert found["conv"].shape == (9, 9)
    np.testing.assert_allclose(found["conv"][1, 8], direct, atol=1e-6)


def test_summary_of_a_case_made_by_hand():
    scores = np.float32([0.2, 0.4, 0.6, 0.9, 0.5, 0.1, 0.3, 0.3])
    measured = HeadMeasurements(
        areas=np.array([500.0, 20000.0, 900.0]),
        object_index=np.array([0, 0, 0, 1, 1, 1, 2, 2]),
        ious=np.float32([0.11, 0.51, 0.91, 0.11, 0.51, 0.91, 0.11, 0.13]),
        scores={"fc": scores, "conv": 1 - scores},
        box_ious={"fc": scores, "conv": scores**2},
        feature_correlation={"fc": np.full((49, 49), 0.25), "conv": np.eye(49)},
        weight_correlation={"fc": np.eye(49), "conv": np.full((9, 9), 0.5)},
        images=2,
        outside=3,
        nearer_another=4,
        windows_per_second=1000.4,
    )
    summary = summarize_heads(measured)
    everything, small, medium, large = summary["by_size"].values()
    assert (everything["objects"], small["objects"], medium["objects"], large["objects"]) == (3, 2, 0, 1)
    assert small["fc"]["pearson"] == pytest.approx(1.0)
    assert small["fc"]["constant_scores"] == 1
    assert large["fc"]["pearson"] == pytest.approx(-1.0)
    assert everything["conv"]["pearson"] == pytest.approx(0.0, abs=1e-6)
    assert everything["conv"]["pearson_std"] == pytest.approx(1.0)
    assert medium["fc"]["pearson"] is None
    difference = everything["pearson_fc_minus_conv"]
    assert difference == {"mean": pytest.approx(0.0, abs=1e-6), "standard_error": pytest.approx(2.0)}
    assert medium["fc"]["score_mean"] == [None] * 20
    assert everything["windows_per_bin"] == [0, 0, 4, *[0] * 7, 2, *[0] * 7, 2, 0]
    assert everything["fc"]["score_mean"][2] == pytest.approx((0.2 + 0.9 + 0.3 + 0.3) / 4)
    assert everything["conv"]["box_iou_mean"][10] == pytest.approx((0.16 + 0.25) / 2)
    assert summary["windows_left_out"] == {"outside": 3, "nearer_another": 4}
    assert summary["feature_correlation"]["fc"]["all_pairs"] == pytest.approx(0.25)
    assert summary["weight_correlation"]["conv"]["neighbours"] == pytest.approx(0.5)
    json.dumps(summary, allow_nan=False)


def test_the_script_writes_figures_and_numbers_and_replaces_only_its_own(runs, given, capsys):
    model = runs / "double_head_ext"
    folder = model / "heads"
    folder.mkdir()
    for name in ("mine.txt", "heads.json", "box_iou.png"):
        (folder / name).write_text("old")
    run(model, "--annotations", given["annotations"], "--images", given["images"], "--limit", 2)
    shown = capsys.readouterr().out
    assert "score ~ IoU, Pearson" in shown
    assert f"written: {folder}" in shown
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(["heads.json", "mine.txt", *(f"{name}.png" for name in FIGURES)])
    assert (folder / "mine.txt").read_text() == "old"
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    results = json.loads((folder / "heads.json").read_text())
    assert results["images"] == 2
    assert results["windows"] + sum(results["windows_left_out"].values()) == 200 * results["objects"]
    assert sum(results["by_size"]["all"]["windows_per_bin"]) == results["windows"]
    assert results["models"] == {"fc": str(model), "conv": str(model)}
    assert not list(model.glob(".partial*"))


def test_a_pair_of_runs_gives_each_head_from_its_own_model_in_any_order(runs, given, tmp_path, make_probe, monkeypatch):
    monkeypatch.setattr(head_analysis, "draw_figures", lambda *results: None)
    pair = [runs / "single_conv", runs / "single_fc"]
    results, folder = analyze_heads(pair, **given, output=tmp_path / "new" / "out", limit=1)
    assert folder == tmp_path / "new" / "out"
    assert results["models"] == {"fc": str(pair[1]), "conv": str(pair[0])}
    dataset = load_coco(**given)
    image, boxes, classes = read_image(dataset.paths[0]), dataset.boxes_of(0), dataset.classes_of(0)
    windows = sliding_windows(boxes, classes, image.shape[:2])
    own = windows.object_index
    probe = make_probe(open_run(pair[0]))
    answers = probe.judge(probe.open_image(image), windows.boxes, boxes[own], classes[own])
    assert list(answers) == ["conv"]
    expected = bin_statistics(windows.ious, answers["conv"][0], bins=20)[1]
    assert results["windows"] == len(own)
    np.testing.assert_allclose(results["by_size"]["all"]["conv"]["score_mean"], expected, atol=1e-5)
    assert np.abs(np.array(results["by_size"]["all"]["fc"]["score_mean"]) - expected).max() > 1e-4
    with pytest.raises(DataError, match=r"out: exists already and is not overwritten"):
        analyze_heads(pair, **given, output=folder)


def other_models(runs, tmp_path, tiny_overrides, kind):
    """Models that cannot be compared."""
    if kind == "saved_model":
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").touch()
        return [tmp_path / "1"]
    if kind == "plain":
        write_run(tmp_path / "plain", load_config(overrides=["model.variant=double_head"]), [Category(1, "cat")])
        return [tmp_path / "plain"]
    if kind == "classes":
        write_run(tmp_path / "cats", load_config(overrides=["model.variant=single_conv"]), [Category(1, "cat")])
        return [runs / "single_fc", tmp_path / "cats"]
    return {
        "one_head": [runs / "single_fc"],
        "same_head": [runs / "single_fc", runs / "single_fc"],
        "ext_and_more": [runs / "double_head_ext", runs / "single_conv"],
        "three": [runs / "single_fc"] * 3,
        "nothing_there": [runs / "nowhere"],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("saved_model", r"1: a SavedModel gives detections only; give the run folder"),
        ("plain", r"plain is double_head \(fc for classes, conv for boxes\); give one double_head_ext run, or a pair"),
        (
            "one_head",
            r"single_fc is single_fc \(fc for classes and boxes\); give .* a single_fc and a single_conv run",
        ),
        ("same_head", r"and .*single_fc is single_fc .*; give one double_head_ext run, or a pair"),
        ("ext_and_more", r"double_head_ext .* and .*single_conv .*; give one double_head_ext run, or a pair"),
        ("classes", r"knows the classes .*, but .*cats cat; give two runs that were trained on the same classes"),
        ("three", r"expected one model or two, got 3"),
        ("nothing_there", r"nowhere: not a run folder"),
    ],
)
def test_models_that_cannot_be_compared_are_refused_in_one_line(
    runs, given, tmp_path, tiny_overrides, capsys, kind, message
):
    models = other_models(runs, tmp_path, tiny_overrides, kind)
    with pytest.raises(SystemExit) as stopped:
        run(*models, "--annotations", given["annotations"], "--images", given["images"], "--output", tmp_path / "out")
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=message):
        analyze_heads(models, **given, output=tmp_path / "out")


def test_data_without_boxes_and_a_limit_of_nothing_are_refused(runs, given, tmp_path):
    tree = json.loads(Path(given["annotations"]).read_text())
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**tree, "annotations": []}))
    with pytest.raises(DataError, match=r"empty\.json: no box to look at"):
        analyze_heads([runs / "double_head_ext"], annotations=empty, images=given["images"], output=tmp_path / "out")
    with pytest.raises(DataError, match=r"--limit: expected at least 1 image, got 0"):
        analyze_heads([runs / "double_head_ext"], **given, limit=0)


def test_an_output_that_cannot_be_made_is_refused_before_anything_is_measured(runs, given, monkeypatch):
    monkeypatch.setattr(head_analysis, "measure_heads", lambda *arguments: pytest.fail("has measured"))
    with pytest.raises(WriteError, match=r"config\.yaml/out: cannot be written: Not a directory; choose a folder"):
        analyze_heads([runs / "single_fc", runs / "single_conv"], **given, output=runs / "single_fc/config.yaml/out")

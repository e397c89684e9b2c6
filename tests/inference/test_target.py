"""Graphs for a GPU, on a CPU: the same detections, few shapes, and what only a CPU can do stays on it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from dh_keras.inference.detector import Detector
from dh_keras.modeling.constants import TARGETS
from dh_keras.serving.export import compare_detectors, export_saved_model

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def detectors(tiny_run):
    """A run's detectors by target."""
    return {target: Detector.load(tiny_run, target=target) for target in TARGETS}


@pytest.fixture(scope="module")
def exports(detectors, tiny_export, tmp_path_factory):
    """What is exported of them, by target."""
    path = tmp_path_factory.mktemp("models") / "gpu" / "1"
    return {"cpu": tiny_export, "gpu": export_saved_model(detectors["gpu"], path)}


@pytest.fixture(scope="module")
def photographs(tiny_shapes, tmp_path_factory):
    """JPEG files that lie, stand, and are so long that a CPU's canvas is smaller than any in training."""
    folder = tmp_path_factory.mktemp("photographs")
    picture = Image.open(sorted(Path(tiny_shapes.val_images).iterdir())[0])
    sizes = {"lies": (200, 150), "stands": (150, 200), "long": (400, 90)}
    for name, size in sizes.items():
        picture.resize(size).save(folder / f"{name}.jpg", quality=95)
    return {name: folder / f"{name}.jpg" for name in sizes}


def nodes(path):
    """All nodes of a SavedModel's functions."""
    [graph] = SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs
    return [node for function in graph.graph_def.library.function for node in function.node_def]


def test_the_target_is_the_machines_unless_it_is_chosen_and_stands_in_the_export(detectors, exports, tiny_run):
    assert Detector.load(tiny_run).target == "cpu"
    for target, path in exports.items():
        assert json.loads((path / "assets" / "signature.json").read_text())["target"] == target
        assert Detector.load(path).target == detectors[target].target == target


def test_an_export_of_before_there_were_targets_is_one_for_a_cpu(exports, tmp_path):
    older = shutil.copytree(exports["gpu"], tmp_path / "1")
    described = json.loads((older / "assets" / "signature.json").read_text())
    del described["target"]
    (older / "assets" / "signature.json").write_text(json.dumps(described))
    assert Detector.load(older).target == "cpu"


def test_each_export_detects_on_a_cpu_what_its_run_does(detectors, exports, photographs):
    for target, path in exports.items():
        said = compare_detectors(detectors[target], Detector.load(path), list(photographs.values()))
        assert said.startswith("verified: 30 detections in 3 image(s)"), target


def test_a_photograph_that_fills_its_canvas_is_seen_alike(detectors, photographs):
    for name in ("lies", "stands"):
        ours, theirs = (detectors[target](photographs[name]) for target in ("gpu", "cpu"))
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)


def test_for_a_gpu_a_batch_gets_a_canvas_of_the_training_or_a_square_for_lying_and_standing(detectors, photographs):
    files = {name: path.read_bytes() for name, path in photographs.items()}
    batches = {("lies",): (96, 128), ("long",): (96, 128), ("stands",): (128, 96), ("long", "stands"): (128, 128)}
    for target, expected in (("gpu", batches), ("cpu", batches | {("long",): (32, 128)})):
        module = detectors[target].module
        for names, canvas in expected.items():
            prepared, sizes, _ = module._prepare(tf.constant([files[name] for name in names]), tf.io.decode_jpeg)
            assert prepared.shape[1:3] == canvas, (target, names)
            assert (sizes.numpy() <= canvas).all()


def test_what_has_no_kernel_for_a_gpu_is_pinned_to_the_cpu_in_the_saved_model(exports):
    for path in exports.values():
        pinned = {node.op for node in nodes(path) if node.device.endswith("CPU:0")}
        assert {"DecodeJpeg", "DecodeRaw", "Substr", "ResizeBilinear", "StringFormat"} <= pinned
        loose = {node.op for node in nodes(path) if not node.device}
        assert not {"DecodeJpeg", "ResizeBilinear", "Substr"} & loose
        assert {"Conv2D", "NonMaxSuppressionV4", "SparseMatrixMatMul"} <= loose
        assert not {node.device for node in nodes(path) if "GPU" in node.device}


def test_the_warm_up_of_an_export_for_a_gpu_runs_its_conv_head_with_few_numbers_of_rois(exports, detectors):
    assert detectors["cpu"].module.warm_up_rois == []
    assert detectors["gpu"].module.warm_up_rois == [64]
    assert set(tf.saved_model.load(str(exports["cpu"])).signatures) == {"serving_default", "serve_image"}
    signatures = tf.saved_model.load(str(exports["gpu"])).signatures
    assert set(signatures) == {"serving_default", "serve_image", "warm_up"}
    answers = [signatures["warm_up"](rois=tf.constant(rois))["largest"].numpy() for rois in ([64], [64, 64, 64])]
    assert [len(answer) for answer in answers] == [1, 3]
    assert answers[0] > 0
    np.testing.assert_allclose(answers[1], np.repeat(answers[0], 3))

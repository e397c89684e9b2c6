"""An exported ONNX file: what it finds, in which runtimes, and what it says of itself."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dh_keras.commands.export import main
from dh_keras.data import transforms
from dh_keras.errors import DataError, UserError
from dh_keras.inference.detector import Detector
from dh_keras.serving.export import compare_detectors, match_detections
from dh_keras.serving.onnx_export import export_onnx, resize_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("quick_graphs")
SERVING_PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
HIDE_TENSORFLOW = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'dh_keras']))\n"


@pytest.fixture(scope="module")
def photographs(tiny_shapes):
    """Three of the validation images."""
    return sorted(Path(tiny_shapes.val_images).glob("*.jpg"))[:3]


@pytest.fixture(scope="module")
def detector(tiny_run):
    return Detector.load(tiny_run)


@pytest.fixture(scope="module")
def exported(tiny_run, photographs, tmp_path_factory):
    """The folder of the command, and what the command said."""
    folder = tmp_path_factory.mktemp("models") / "onnx"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main([str(tiny_run), "--format", "onnx", "--output", str(folder), "--verify", *map(str, photographs)])
    return folder, said.getvalue().splitlines()


def test_the_command_verifies_in_onnx_runtime_what_it_wrote(exported):
    folder, lines = exported
    assert f"written: {folder}, model.onnx (images)" in lines
    [verified] = [line for line in lines if line.startswith("verified: ")]
    found = re.fullmatch(r"verified: (\d+) detections in 3 image\(s\), boxes within (\S+) pixel, scores .*", verified)
    assert int(found[1]) >= 10
    assert float(found[2]) < 0.05


def test_images_of_other_sizes_and_batches_are_detected_as_the_run_does(detector, exported):
    other = Detector.load(exported[0])
    generator = np.random.default_rng(0)
    for shape in ((1, 61, 90, 3), (3, 140, 130, 3), (1, 128, 33, 3)):
        images = generator.integers(0, 256, shape).astype(np.uint8)
        for one, two in zip(detector.detect_images(images), other.detect_images(images), strict=True):
            assert len(one) == len(two) == len(match_detections(one, two)) > 0


def test_what_it_says_of_itself_is_what_a_saved_model_says(detector, exported):
    described = json.loads((exported[0] / "assets" / "signature.json").read_text())
    assert described["inputs"] == {
        "model.onnx": {"images": {"dtype": "uint8", "shape": [None, None, None, 3], "format": "RGB"}}
    }
    graph = onnx.load(exported[0] / "model.onnx").graph
    assert [value.name for value in graph.input] == ["images"]
    outputs = {"detection_boxes", "detection_scores", "detection_classes", "num_detections"}
    assert {value.name for value in graph.output} == set(described["outputs"]) == outputs
    rest = detector.module.describe()
    for name in ("preprocessing", "boxes", "target", "score_threshold", "max_detections"):
        assert described[name] == json.loads(json.dumps(rest[name]))
    labels = json.loads((exported[0] / "assets" / "labels.json").read_text())
    assert labels == [{"id": category.id, "name": category.name} for category in detector.categories]


def test_the_example_of_the_documentation_runs_without_tensorflow(detector, exported, photographs, tmp_path):
    [code] = re.findall(r"```python\n(import json\n[^`]*onnxruntime[^`]*)```", SERVING_PAGE.read_text())
    shutil.copytree(exported[0], tmp_path / "models" / "cells_onnx")
    shutil.copy(photographs[0], tmp_path / "photo.jpg")
    command = [sys.executable, "-c", HIDE_TENSORFLOW + code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    expected = detector(np.asarray(Image.open(photographs[0])))
    shown = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in shown] == [found["category"] for found in expected.as_dicts()]
    np.testing.assert_allclose([float(score) for _, score, _ in shown], expected.scores, atol=1e-3)


def test_openvino_reads_the_file_and_finds_the_same(detector, exported, photographs):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(exported[0] / "model.onnx"), "CPU", settings)
    for path in photographs:
        images = np.asarray(Image.open(path))[None]
        found = {output.get_any_name(): value for output, value in compiled({"images": images}).items()}
        [expected] = detector.detect_images(images)
        count = int(found["num_detections"][0])
        assert count == len(expected) > 0
        np.testing.assert_allclose(found["detection_scores"][0, :count], expected.scores, atol=1e-3)
        np.testing.assert_allclose(found["detection_boxes"][0, :count], expected.boxes, atol=0.1)


@pytest.mark.parametrize(("size", "new_size"), [((48, 64), (80, 107)), ((97, 131), (24, 33)), ((1, 5), (3, 2))])
def test_images_are_resized_to_the_last_bit(size, new_size):
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    resized = resize_images(tf.constant(images), tf.constant(new_size)).numpy()
    for image, found in zip(images, resized, strict=True):
        np.testing.assert_array_equal(found, transforms.resize_image(tf.constant(image), tf.constant(new_size)))


def test_verification_names_a_file_whose_detections_differ(detector, exported, photographs, monkeypatch):
    other = Detector.load(exported[0])
    found = other._detect_images

    def moved(images):
        outputs = found(images)
        return {**outputs, "detection_boxes": outputs["detection_boxes"] + 0.5}

    monkeypatch.setattr(other, "_serve_bytes", lambda files: moved(transforms.decode_image(files[0])[None]))
    with pytest.raises(DataError, match=f"{photographs[0].name}: the export finds"):
        compare_detectors(detector, other, photographs)


def test_what_cannot_be_exported_is_one_line(tiny_run, detector, exported, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="onnx: exists already and is not overwritten"):
        export_onnx(detector, exported[0])
    with pytest.raises(DataError, match="onnx: is exported already; export takes a run folder"):
        export_onnx(Detector.load(exported[0]), tmp_path / "new")
    with pytest.raises(DataError, match="an ONNX file computes in float32, got bfloat16"):
        export_onnx(Detector.load(tiny_run, precision="bfloat16"), tmp_path / "new")
    monkeypatch.setitem(sys.modules, "tf2onnx.convert", None)
    with pytest.raises(UserError, match='an ONNX file needs tf2onnx and onnx: pip install "'):
        export_onnx(detector, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_read_is_one_line(exported, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"onnx: an export is fixed and takes no overrides, got data.min_size=64"):
        Detector.load(exported[0], ["data.min_size=64"])
    broken = shutil.copytree(exported[0], tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"no model")
    with pytest.raises(DataError, match="broken: not an ONNX file that this package exported: "):
        Detector.load(broken)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnx: an ONNX file needs onnxruntime: pip install "):
        Detector.load(exported[0])

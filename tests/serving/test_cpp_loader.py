"""The exported SavedModel in a C++ program: TensorFlow's own loader, no Python, the same detections."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dh_keras.inference.detector import Detector
from dh_keras.serving.export import export_saved_model

SOURCE = Path(__file__).with_name("load_saved_model.cc")
LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
# Largest differences from Python, in score and in pixels; ids, names and counts must be equal.
TOLERANCES = {"detection_scores": 1e-5, "detection_boxes": 1e-3}


class Inputs(NamedTuple):
    """Files of the requests, and the pixels uint8 [2, H, W, 3] that are in the last one."""

    jpeg: Path
    other_jpeg: Path
    png: Path
    garbage: Path
    raw: Path
    pixels: np.ndarray


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The compiled program; compiling takes about ten seconds on one core."""
    folder = Path(tf.sysconfig.get_lib())
    if shutil.which("g++") is None:
        pytest.skip("g++ is needed to compile the C++ program")
    if not all((folder / name).is_file() for name in LIBRARIES):
        pytest.skip(f"this TensorFlow package does not hold {' and '.join(LIBRARIES)}")
    output = tmp_path_factory.mktemp("program") / "load_saved_model"
    # The flags include the headers and the ABI of the libraries; -w is for the warnings of the headers.
    command = ["g++", *tf.sysconfig.get_compile_flags(), "-std=c++17", "-O0", "-w", SOURCE, "-o", output]
    # The program names nothing of the library that registers the kinds of session, so a linker could drop it.
    command += ["-Wl,--no-as-needed", f"-Wl,-rpath,{folder}", f"-L{folder}", *(f"-l:{name}" for name in LIBRARIES)]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return output


@pytest.fixture(scope="module")
def inputs(tiny_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    names = ("a.jpg", "b.jpg", "a.png", "garbage.jpg", "pixels.raw")
    first, second = (Image.open(path) for path in sorted(Path(tiny_shapes.val_images).iterdir())[:2])
    pixels = np.stack([np.asarray(first), np.asarray(first)[:, ::-1]])
    made = Inputs(*(folder / name for name in names), pixels=pixels)
    first.save(made.jpeg, quality=95)
    second.resize((150, 211)).save(made.other_jpeg, quality=95)
    first.save(made.png)
    made.garbage.write_bytes(b"this is no image")
    made.raw.write_bytes(pixels.tobytes())
    return made


pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def detector(tiny_run, inputs):
    """A detector that finds five objects in the first image, so that rows of padding are served as well."""
    scores = Detector.load(tiny_run)(inputs.jpeg).scores
    return Detector.load(tiny_run, [f"model.score_threshold={scores[4:6].mean()}"])


@pytest.fixture(scope="module")
def saved_model(detector, tmp_path_factory):
    return export_saved_model(detector, tmp_path_factory.mktemp("models") / "tiny" / "1")


@pytest.fixture(scope="module")
def answers(program, saved_model, inputs):
    """What the program prints: one process, one load, a line for each request."""
    batch, height, width, _ = inputs.pixels.shape
    requests = {
        "jpeg": ["serving_default", inputs.jpeg],
        "two jpegs": ["serving_default", inputs.jpeg, inputs.other_jpeg],
        "png": ["serving_default", inputs.png],
        "pixels": ["serve_image", inputs.raw, batch, height, width],
        "garbage": ["serving_default", inputs.jpeg, inputs.garbage],
        "after garbage": ["serving_default", inputs.jpeg],
    }
    words = [word for request in requests.values() for word in ("--", *request)][1:]
    result = run(program, saved_model, *words)
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(zip(["loaded", *requests], map(json.loads, result.stdout.splitlines()), strict=True))


def run(program, *words):
    command = [str(word) for word in (program, *words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def assert_served(answer, expected):
    """The flat lists of the program are the tensors that Python's serving functions return."""
    assert set(answer) == set(expected)
    for name, tensor in expected.items():
        values = tensor.numpy()
        if values.dtype == object:
            assert answer[name] == [text.decode() for text in values.ravel()]
            continue
        served = np.array(answer[name], values.dtype).reshape(values.shape)
        np.testing.assert_allclose(served, values, rtol=0, atol=TOLERANCES.get(name, 0), err_msg=name)


def test_a_jpeg_gives_the_detections_of_the_detector(answers, detector, inputs):
    answer, expected = answers["jpeg"], detector(inputs.jpeg)
    assert answer["num_detections"] == [len(expected)] == [5]
    assert answer["detection_classes"] == [*expected.category_ids.tolist(), 0, 0, 0, 0, 0]
    assert answer["detection_class_names"] == [*expected.categories, "", "", "", "", ""]
    np.testing.assert_allclose(answer["detection_scores"], [*expected.scores, *[0] * 5], rtol=0, atol=1e-5)
    boxes = np.reshape(answer["detection_boxes"], (10, 4))
    np.testing.assert_allclose(boxes[:5], expected.boxes, rtol=0, atol=1e-3)
    assert not boxes[5:].any()


def test_two_jpegs_of_different_sizes_go_through_in_one_batch(answers, detector, inputs):
    answer = answers["two jpegs"]
    assert Image.open(inputs.jpeg).size != Image.open(inputs.other_jpeg).size
    assert len(answer["num_detections"]) == 2
    assert min(answer["num_detections"]) > 0
    paths = (inputs.jpeg, inputs.other_jpeg)
    assert_served(answer, detector.module.serve_bytes([path.read_bytes() for path in paths]))


def test_a_png_goes_through_the_same_signature(answers, detector, inputs):
    assert answers["png"]["num_detections"][0] > 0
    assert_served(answers["png"], detector.module.serve_bytes([inputs.png.read_bytes()]))


def test_decoded_pixels_go_through_serve_image(answers, detector, inputs):
    assert min(answers["pixels"]["num_detections"]) > 0
    assert_served(answers["pixels"], detector.module.serve_images(inputs.pixels))


def test_garbage_is_refused_with_a_message_and_the_next_request_is_answered(answers, detector, inputs):
    assert list(answers["garbage"]) == ["error"]
    assert answers["garbage"]["error"].startswith("INVALID_ARGUMENT: ")
    assert "expected JPEG or PNG files; of other kinds or empty: number [1]" in answers["garbage"]["error"]
    assert_served(answers["after garbage"], detector.module.serve_bytes([inputs.jpeg.read_bytes()]))


def test_the_load_time_is_reported(answers):
    assert 0 < answers["loaded"]["load_seconds"] < 100


def test_what_cannot_be_served_ends_the_program_with_a_reason(program, saved_model, inputs):
    no_model = run(program, saved_model.parent, "serving_default", inputs.jpeg)
    assert no_model.returncode == 1
    assert "load_saved_model: NOT_FOUND: Could not find SavedModel" in no_model.stderr
    no_signature = run(program, saved_model, "serve_video", inputs.jpeg)
    assert no_signature.returncode == 1
    assert "load_saved_model: a request starts with a signature's name" in no_signature.stderr

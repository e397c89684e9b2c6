"""The client, REST and gRPC, against loopback servers that answer from a real SavedModel as TensorFlow Serving does."""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from dh_keras.errors import DataError
from dh_keras.inference.detector import Detector
from dh_keras.inference.prediction.folder import PredictionSettings
from dh_keras.inference.prediction.predict_files import predict_files
from dh_keras.serving.client import (
    GrpcClient,
    RestClient,
    ServerError,
    grpc_request,
    parse_grpc_response,
    parse_rest_response,
    predict_on_server,
    rest_request,
    rest_url,
)

pytestmark = pytest.mark.usefixtures("quick_graphs")
ROOT = Path(__file__).resolve().parents[2]
PREDICT_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")


class Model:
    """What both servers do with a request: find the model and run a signature."""

    def __init__(self, path):
        self.signatures = tf.saved_model.load(str(path)).signatures
        self.delay = 0.0
        self.requests = []

    def run(self, name, version, signature, inputs):
        """Outputs as arrays; KeyError for another model, tf.errors.InvalidArgumentError for a bad image."""
        self.requests.append((name, version, signature, {key: np.shape(value) for key, value in inputs.items()}))
        time.sleep(self.delay)
        if name != "tiny" or version not in (None, 1):
            raise KeyError(f"Servable not found for request: {'Latest' if version is None else 'Specific'}({name})")
        dtypes = {"image_bytes": tf.string, "images": tf.uint8}
        tensors = {key: tf.constant(value, dtypes[key]) for key, value in inputs.items()}
        return {key: value.numpy() for key, value in self.signatures[signature](**tensors).items()}


def as_json(array):
    """Numbers and names as TensorFlow Serving writes them: the shortest decimals, names as plain strings."""
    if array.dtype == object:
        return [[name.decode() for name in row] for row in array]
    return array.astype("U32").astype(float).tolist() if array.dtype == np.float32 else array.tolist()


def values_of(value):
    """Decode {"b64": ...} wherever it stands in a list."""
    if isinstance(value, dict):
        assert list(value) == ["b64"]
        return base64.b64decode(value["b64"], validate=True)
    return [values_of(item) for item in value] if isinstance(value, list) else value


def answer(model, path, body):
    """Status and body of a REST answer."""
    match = PREDICT_PATH.fullmatch(path)
    if match is None:
        return 400, {"error": f"Malformed request: POST {path}"}
    name, version = match[1], int(match[2]) if match[2] else None
    assert ("instances" in body) != ("inputs" in body)
    if "instances" in body:
        [key] = body["instances"][0]
        inputs = {key: values_of([row[key] for row in body["instances"]])}
    else:
        inputs = {key: values_of(value) for key, value in body["inputs"].items()}
    try:
        outputs = model.run(name, version, body.get("signature_name", "serving_default"), inputs)
    except KeyError as error:
        return 404, {"error": error.args[0]}
    except tf.errors.InvalidArgumentError as error:
        return 400, {"error": error.message}
    columns = {key: as_json(array) for key, array in outputs.items()}
    if "inputs" in body:
        return 200, {"outputs": columns}
    count = len(columns["num_detections"])
    return 200, {"predictions": [{key: column[row] for key, column in columns.items()} for row in range(count)]}


@contextlib.contextmanager
def http_server(reply):
    """A server on a free port; reply(path, body) gives status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            status, body = reply(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def grpc_server(predict):
    """A server on a free port; predict(request, context) gives a PredictResponse."""

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            return predict(request, context)

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(2), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def detector(tiny_export):
    return Detector.load(tiny_export)


@pytest.fixture(scope="module")
def loaded(tiny_export):
    return Model(tiny_export)


@pytest.fixture
def model(loaded):
    """The served model, without delay and with no requests yet."""
    loaded.delay = 0.0
    loaded.requests.clear()
    return loaded


@pytest.fixture
def rest(model):
    with http_server(lambda path, body: answer(model, path, body)) as server:
        yield server


@pytest.fixture
def grpc_address(model):
    def predict(request, context):
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        try:
            outputs = model.run(spec.name, version, spec.signature_name, inputs)
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, error.args[0])
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        response = predict_pb2.PredictResponse()
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return response

    with grpc_server(predict) as server:
        yield server


@pytest.fixture(scope="module")
def photographs(tiny_shapes, tmp_path_factory):
    """Two JPEG files of different sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    first, second = sorted(Path(tiny_shapes.val_images).iterdir())[:2]
    Image.open(first).save(folder / "a.jpg", quality=95)
    Image.open(second).resize((150, 211)).save(folder / "b.jpg", quality=95)
    return [folder / "a.jpg", folder / "b.jpg"]


@pytest.fixture(params=["rest rows", "rest columns", "grpc"])
def connect(request, rest, grpc_address):
    """Return a function that makes a client of one of the three kinds."""

    def make(model="tiny", **options):
        if request.param == "grpc":
            return GrpcClient(grpc_address, model, **options)
        return RestClient(rest, model, columns=request.param == "rest columns", **options)

    return make


def assert_same(result, expected):
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
    assert result.category_ids.tolist() == expected.category_ids.tolist()
    assert result.categories == expected.categories
    assert (result.boxes.dtype, result.scores.dtype, result.category_ids.dtype) == (np.float32, np.float32, np.int32)


def test_files_of_two_sizes_give_the_detections_of_the_saved_model(connect, detector, model, photographs):
    client = connect()
    for path in photographs:
        [result] = client([path.read_bytes()])
        assert len(result) == 10
        assert_same(result, detector(path))
    files = [path.read_bytes() for path in photographs]
    both = model.signatures["serving_default"](image_bytes=tf.constant(files))
    for row, result in enumerate(client(files)):
        np.testing.assert_allclose(result.boxes, both["detection_boxes"][row], atol=1e-3)
        np.testing.assert_allclose(result.scores, both["detection_scores"][row], atol=1e-5)
        assert result.category_ids.tolist() == both["detection_classes"][row].numpy().tolist()
    assert [shapes["image_bytes"] for _, _, _, shapes in model.requests] == [(1,), (1,), (2,)]


def test_pixels_go_to_the_other_signature(connect, detector, model, photographs):
    pixels = np.asarray(Image.open(photographs[1]))
    client = connect(version=1)
    one, two = client(np.stack([pixels, pixels[::-1]]))
    assert model.requests == [("tiny", 1, "serve_image", {"images": (2, 211, 150, 3)})]
    expected = detector.detect_images(np.stack([pixels, pixels[::-1]]))
    assert_same(one, expected[0])
    assert_same(two, expected[1])


def test_an_image_that_the_server_cannot_decode_is_one_line_and_the_next_request_works(connect, photographs):
    client = connect()
    with pytest.raises(DataError, match=r"127\.0\.0\.1:\d+.*: the server refuses the request: .*") as error:
        client([b"no image"])
    assert "\n" not in str(error.value)
    assert "expected JPEG or PNG files" in str(error.value).split("refuses the request:")[1]
    assert len(client([photographs[0].read_bytes()])[0]) == 10


@pytest.mark.parametrize(("name", "options"), [("other", {}), ("tiny", {"version": 7})])
def test_a_model_or_version_that_the_server_does_not_have_is_named(connect, photographs, name, options):
    message = rf"(models/|model ){name}.*: the server answers: Servable not found.*; check the model's name and version"
    with pytest.raises(ServerError, match=message):
        connect(name, **options)([photographs[0].read_bytes()])


def test_a_slow_server_is_given_up(connect, model, photographs):
    model.delay = 1.5
    with pytest.raises(ServerError, match=r"no answer within 0\.3 seconds; a longer --timeout may help"):
        connect(timeout=0.3)([photographs[0].read_bytes()])


def test_a_server_that_is_not_there_is_named(photographs):
    port = free_port()
    data = [photographs[0].read_bytes()]
    with pytest.raises(ServerError, match=rf"http://127\.0\.0\.1:{port}/v1/.*: cannot be reached: Connection refused"):
        RestClient(f"http://127.0.0.1:{port}", "tiny")(data)
    with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port}, model tiny: cannot be reached") as error:
        GrpcClient(f"127.0.0.1:{port}", "tiny")(data)
    assert "\n" not in str(error.value)


def test_rest_to_the_grpc_port_is_one_line(grpc_address, photographs):
    with pytest.raises(ServerError, match="cannot be reached") as error:
        RestClient(f"http://{grpc_address}", "tiny", timeout=5)([photographs[0].read_bytes()])
    assert "\n" not in str(error.value)


def test_addresses_of_the_wrong_kind_are_refused():
    with pytest.raises(ServerError, match="localhost:8501: a REST server is given as http://host:port"):
        RestClient("localhost:8501", "tiny")
    with pytest.raises(ServerError, match="http://localhost:8500: a gRPC server is given as host:port"):
        GrpcClient("http://localhost:8500", "tiny")


def test_the_predict_address_names_model_and_version():
    assert rest_url("http://host:8501", "cells") == "http://host:8501/v1/models/cells:predict"
    assert rest_url("http://host:8501/", "cells", 3) == "http://host:8501/v1/models/cells/versions/3:predict"


def test_requests_have_the_form_that_tensorflow_serving_documents():
    rows = rest_request([b"\xff\xd8", b"a"])
    assert rows == {
        "signature_name": "serving_default",
        "instances": [{"image_bytes": {"b64": "/9g="}}, {"image_bytes": {"b64": "YQ=="}}],
    }
    columns = rest_request([b"\xff\xd8", b"a"], columns=True)
    assert columns == {
        "signature_name": "serving_default",
        "inputs": {"image_bytes": [{"b64": "/9g="}, {"b64": "YQ=="}]},
    }
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 1, 2, 3)
    assert rest_request(pixels) == {
        "signature_name": "serve_image",
        "instances": [{"images": [[[0, 1, 2], [3, 4, 5]]]}],
    }
    request = grpc_request([b"\xff\xd8", b"a"], "cells", version=3)
    assert (request.model_spec.name, request.model_spec.signature_name) == ("cells", "serving_default")
    assert request.model_spec.version.value == 3
    assert tf.make_ndarray(request.inputs["image_bytes"]).tolist() == [b"\xff\xd8", b"a"]
    assert not grpc_request(pixels, "cells").model_spec.HasField("version")
    np.testing.assert_array_equal(tf.make_ndarray(grpc_request(pixels, "cells").inputs["images"]), pixels)


def test_arrays_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match=r"`images` must be files or uint8 \[B, H, W, 3\], got float32 \[1, 2, 2, 3\]"):
        rest_request(np.zeros((1, 2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \[2, 2, 3\]"):
        grpc_request(np.zeros((2, 2, 3), np.uint8), "cells")


def test_padding_is_cut_off_and_names_are_text():
    row = {
        "detection_boxes": [[1.5, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]],
        "detection_scores": [0.75, 0.0],
        "detection_classes": [7, 0],
        "detection_class_names": ["Größe", ""],
        "num_detections": 1,
    }
    columns = {name: [value, value] for name, value in row.items()}
    columns["num_detections"] = [1, 0]
    [found] = parse_rest_response({"predictions": [row]})
    assert found.as_dicts() == [{"box": [1.5, 2.0, 3.0, 4.0], "score": 0.75, "category_id": 7, "category": "Größe"}]
    first, second = parse_rest_response({"outputs": columns})
    assert first.as_dicts() == found.as_dicts()
    assert second.as_dicts() == []
    assert second.boxes.shape == (0, 4)
    response = predict_pb2.PredictResponse()
    for name, value in row.items():
        dtype = {"detection_boxes": tf.float32, "detection_scores": tf.float32}.get(name)
        response.outputs[name].CopyFrom(tf.make_tensor_proto([value], dtype))
    [found] = parse_grpc_response(response)
    assert found.as_dicts() == [{"box": [1.5, 2.0, 3.0, 4.0], "score": 0.75, "category_id": 7, "category": "Größe"}]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"<html>", r":predict: the answer is not JSON; is this the server's REST port\?"),
        (200, {"predictions": [[0.1, 0.9]]}, r":predict: the answer holds no detections; is it a model that"),
        (200, {"outputs": {"num_detections": [1]}}, r"no detections.*\('detection_class_names'\)"),
        (200, [1], "no detections"),
        (500, {"error": "out of\nmemory"}, ":predict: the server answers: out of memory$"),
        (503, b"", ":predict: the server answers: Service Unavailable$"),
        (502, b"<html>bad\ngateway</html>", "the server answers: <html>bad gateway</html>$"),
    ],
)
def test_answers_that_are_of_no_use_are_one_line(status, body, expected):
    with http_server(lambda *_: (status, body)) as server, pytest.raises(ServerError, match=expected) as error:
        RestClient(server, "tiny")([b"x"])
    assert "\n" not in str(error.value)


def test_an_answer_of_another_model_by_grpc_is_one_line():
    with (
        grpc_server(lambda *_: predict_pb2.PredictResponse()) as server,
        pytest.raises(ServerError, match="model tiny: the answer holds no detections"),
    ):
        GrpcClient(server, "tiny")([b"x"])


def test_grpc_carries_more_than_the_four_megabytes_of_its_default(photographs):
    names = ["x" * 5_000_000]
    outputs = {
        "detection_boxes": np.ones((1, 1, 4), np.float32),
        "detection_scores": np.ones((1, 1), np.float32),
        "detection_classes": np.ones((1, 1), np.int32),
        "detection_class_names": np.array([names]),
        "num_detections": np.ones(1, np.int32),
    }

    def predict(request, context):
        assert len(tf.make_ndarray(request.inputs["image_bytes"])[0]) == 6_000_000
        response = predict_pb2.PredictResponse()
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return response

    with grpc_server(predict) as server:
        [result] = GrpcClient(server, "tiny")([b"x" * 6_000_000])
    assert result.categories == tuple(names)


def test_grpc_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ServerError, match=r'pip install "tensorflow-serving-api<.*", or use REST'):
        GrpcClient("localhost:8500", "tiny")
    assert rest_url("http://localhost:8501", "tiny")


def test_what_is_written_is_what_predict_writes_and_faults_do_not_lose_the_rest(
    connect, detector, photographs, tmp_path
):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    [fault] = predict_on_server(connect(), [photographs[0], bad, photographs[1]], tmp_path / "out", score=0.1)
    assert "bad.jpg: not a readable JPEG or PNG image" in fault
    predict_files(detector, photographs, tmp_path / "local", PredictionSettings(score=0.1))
    ours, theirs = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("out", "local"))
    assert len(ours) == 2
    for row, expected in zip(ours, theirs, strict=True):
        found, wanted = row.pop("detections"), expected.pop("detections")
        assert row == expected
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one["box"] == pytest.approx(other["box"], abs=1e-3)
            assert (one["category_id"], one["category"]) == (other["category_id"], other["category"])
    with pytest.raises(DataError, match=r"predictions\.json: exists already and is not overwritten"):
        predict_on_server(connect(), photographs, tmp_path / "out", score=0.1)


def test_what_was_found_before_the_server_failed_is_written(detector, photographs, tmp_path):
    def fail_the_second_time(images):
        if len(images[0]) == photographs[1].stat().st_size:
            raise ServerError("gone")
        return [detector(images[0])]

    with pytest.raises(ServerError, match="gone"):
        predict_on_server(fail_the_second_time, photographs, tmp_path / "some.json", score=0.5)
    assert [row["file"] for row in json.loads((tmp_path / "some.json").read_text())] == [str(photographs[0])]
    with pytest.raises(ServerError, match="gone"):
        predict_on_server(fail_the_second_time, photographs[1:], tmp_path / "none.json", score=0.5)
    assert not (tmp_path / "none.json").exists()


def test_a_file_that_only_the_server_refuses_is_named(photographs, tmp_path):
    def refuse(images):
        raise DataError("server: too large")

    faults = predict_on_server(refuse, photographs[:1], tmp_path / "all.json", score=0.5)
    assert faults == [f"{photographs[0]}: server: too large"]
    assert json.loads((tmp_path / "all.json").read_text()) == []


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "serve_client.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("kind", ["--rest", "--grpc"])
def test_the_script_writes_detections_by_rest_and_by_grpc(
    kind, rest, grpc_address, detector, model, photographs, tmp_path
):
    address = rest if kind == "--rest" else grpc_address
    options = ("--model", "tiny", "--version", "1", "--score", "0", "--timeout", "100")
    result = run_script(*photographs, kind, address, *options, "--output", tmp_path / "found.json")
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"server: {address}, model tiny; 2 image(s)" in result.stdout
    assert [(name, version) for name, version, _, _ in model.requests] == [("tiny", 1)] * 2
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["file"] for row in rows] == [str(path) for path in photographs]
    for row, path in zip(rows, photographs, strict=True):
        scores = [detection["score"] for detection in row["detections"]]
        np.testing.assert_allclose(scores, detector(path).scores, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("PHOTO", "--rest", "http://127.0.0.1:PORT", "--model", "m"), "error: http://127.0.0.1:PORT/v1/models/m:pred"),
        (("PHOTO", "--grpc", "127.0.0.1:PORT", "--model", "m"), "error: 127.0.0.1:PORT, model m: cannot be reached"),
        (("none.jpg", "--grpc", "127.0.0.1:PORT", "--model", "m"), "error: none.jpg: no such file or folder"),
        (("PHOTO", "--model", "m"), "one of the arguments --rest --grpc is required"),
        (("PHOTO", "--rest", "http://a", "--grpc", "a", "--model", "m"), "not allowed with argument --rest"),
        (("PHOTO", "--rest", "http://a", "--model", "m", "train.lr=1"), "takes no overrides, got 'train.lr=1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_script_answers_bad_input_with_one_line(arguments, expected, photographs, tmp_path):
    known = {"PHOTO": str(photographs[0])}
    port = str(free_port())
    words = [known.get(word, word).replace("PORT", port) for word in arguments]
    result = run_script(*words, "--output", tmp_path / "out.json")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert expected.replace("PORT", port) in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out.json").exists()

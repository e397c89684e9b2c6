"""The files in deploy/ and the commands in docs/serving.md: what they name exists and reads as the server reads it."""

import ast
import base64
import json
import re
import shlex
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from dh_keras.commands.main import main
from dh_keras.serving.client import rest_request
from dh_keras.serving.warmup import warmup_requests

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["serving"]

# Options of tensorflow_model_server 2.20 that the files here may use.
SERVER_OPTIONS = {
    "allow_version_labels_for_unavailable_models",
    "batching_parameters_file",
    "enable_batching",
    "enable_model_warmup",
    "grpc_max_threads",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "per_process_gpu_memory_fraction",
    "rest_api_num_threads",
    "rest_api_timeout_in_ms",
    "tensorflow_inter_op_parallelism",
    "tensorflow_intra_op_parallelism",
}


def batching_parameters():
    """The message `tensorflow.serving.BatchingParameters`, which the Python package of TensorFlow Serving lacks."""
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    field = descriptor_pb2.FieldDescriptorProto
    numbers = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    for number, name in enumerate(numbers, start=1):
        message.field.add(
            name=name,
            number=number,
            label=field.LABEL_OPTIONAL,
            type=field.TYPE_MESSAGE,
            type_name=".google.protobuf.Int64Value",
        )
    message.field.add(name="allowed_batch_sizes", number=6, label=field.LABEL_REPEATED, type=field.TYPE_INT64)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters"))()


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def commands():
    """The bash commands of the page, a line each."""
    return [line for block in code_blocks("bash") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_batching_file_says_what_the_page_and_the_warm_up_say():
    parsed = text_format.Parse((ROOT / "deploy" / "batching.config").read_text(), batching_parameters())
    sizes = list(parsed.allowed_batch_sizes)
    assert sizes == [1, 2, 4]
    assert sizes[-1] == parsed.max_batch_size.value
    warmed_up = {len(request.inputs["image_bytes"]) for request in warmup_requests() if "image_bytes" in request.inputs}
    assert warmed_up == set(sizes)
    documented = dict(re.findall(r"^\| `(\w+)` \| ([\d, ]+) \|", DOCS, re.MULTILINE))
    assert documented.pop("allowed_batch_sizes") == ", ".join(map(str, sizes))
    assert len(documented) == 4
    assert {name: int(value) for name, value in documented.items()} == {
        name: getattr(parsed, name).value for name in documented
    }


def test_a_wrong_key_in_the_batching_file_would_be_noticed():
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        text_format.Parse("max_batchsize { value: 4 }", batching_parameters())


def test_the_model_file_serves_the_version_that_its_label_names():
    text = (ROOT / "deploy" / "models.config").read_text()
    [config] = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("detector", "/models/detector", "tensorflow")
    assert list(config.model_version_policy.specific.versions) == [1]
    assert dict(config.version_labels) == {"stable": 1}


def test_the_container_is_pinned_and_sees_models_and_files_read_only():
    assert COMPOSE["image"] == "tensorflow/serving:2.20.0"
    assert COMPOSE["volumes"] == ["../models:/models:ro", ".:/config:ro"]
    assert COMPOSE["ports"] == ["8500:8500", "8501:8501"]
    options = dict(option.removeprefix("--").split("=") for option in COMPOSE["command"])
    for name in ("model_config_file", "batching_parameters_file"):
        assert (ROOT / "deploy" / Path(options[name]).relative_to("/config")).is_file()
    assert options["enable_batching"] == options["allow_version_labels_for_unavailable_models"] == "true"


def test_the_server_options_in_the_files_exist():
    used = {option.removeprefix("--").split("=")[0] for option in COMPOSE["command"]}
    documented = set(re.findall(r"`--(\w+)", DOCS)) | set(re.findall(r" --(\w+)=\.\.\.", DOCS))
    assert used <= SERVER_OPTIONS
    assert documented <= SERVER_OPTIONS
    assert used | documented == SERVER_OPTIONS


@pytest.mark.parametrize(
    ("state", "healthy"), [("AVAILABLE", True), ("LOADING", False), (None, False)], ids=["available", "loading", "none"]
)
def test_the_health_check_wants_an_available_version(state, healthy):
    class Status(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if state and self.path == "/v1/models/detector" else 404)
            self.end_headers()
            self.wfile.write(
                json.dumps({"model_version_status": [{"version": "1", "state": state}]}, indent=1).encode()
            )

        def log_message(self, *args):
            pass

    kind, shell, flag, script = COMPOSE["healthcheck"]["test"]
    assert (kind, shell, flag) == ("CMD", "bash", "-c")
    with ThreadingHTTPServer(("127.0.0.1", 0), Status) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = script.replace("/8501", f"/{server.server_port}")
        result = subprocess.run([shell, flag, command], capture_output=True, timeout=30, check=False)
        server.shutdown()
    assert (result.returncode == 0) == healthy


def test_commands_of_the_page_use_options_that_they_have(capsys):
    lines = [line for line in commands() if line.startswith("dh-keras ")]
    assert len(lines) == 4
    for line in lines:
        _, command, *arguments = shlex.split(line)
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        used = {word for word in arguments if word.startswith("--")}
        assert used
        assert used <= set(re.findall(r"--[a-z-]+", shown)), line


def test_the_curl_commands_of_the_page_write_the_requests_of_the_client(tmp_path):
    photo = np.random.default_rng(0).bytes(1000)
    (tmp_path / "photo.jpg").write_bytes(photo)
    makers = [line for line in commands() if line.startswith("printf")]
    for line in makers:
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, timeout=30)
    rows, columns = (json.loads((tmp_path / name).read_text()) for name in ("rows.json", "columns.json"))
    assert rows == rest_request([photo])
    assert columns == rest_request([photo], columns=True)
    assert base64.b64decode(rows["instances"][0]["image_bytes"]["b64"]) == photo


def test_files_and_python_of_the_page_exist_and_compile():
    for name in set(re.findall(r"(?:deploy|dh_keras|scripts|docs)/[\w.-]+\.\w+", DOCS)):
        assert (ROOT / name).is_file(), name
    blocks = code_blocks("python")
    assert len(blocks) == 5
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)

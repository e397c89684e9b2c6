"""Send photographs to a running TensorFlow Serving by REST or gRPC; the model stays on the server.

Images are encoded files, which go to the signature `serving_default`, or decoded pixels, which go to `serve_image`.
Letters: B batch, H W C.
"""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dh_keras.errors import DataError, ServerError, UserError, one_line, pip_install
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import new_file, require_absent, write_json
from dh_keras.inference.photographs import read_image, read_image_file
from dh_keras.inference.prediction.folder import RESULT_FILES
from dh_keras.inference.prediction.image_files import describe_image
from dh_keras.inference.served import read_served, split_by_image
from dh_keras.paths import to_path

# The server takes messages up to this size; a gRPC client takes 4 MB unless it is told otherwise.
MAX_MESSAGE_BYTES = 2**31 - 1

# JPEG or PNG files of any sizes, or RGB pixels uint8 [B, H, W, 3].
Images = Sequence[bytes] | np.ndarray
Client = Callable[[Images], list[ImageDetections]]


class RestClient:
    """A model on a server, by REST.

    Args:
        server: such as "http://localhost:8501".
        model: name of the model on the server.
        version: number of a version; the newest that is loaded if None.
        timeout: seconds to wait for an answer.
        columns: send the column format, not the row format; the detections are the same.

    Raises:
        ServerError: when `server` is not an http or https address.

    Example:
        >>> client = RestClient("http://localhost:8501", "detector")
        >>> [result] = client([Path("photo.jpg").read_bytes()])
    """

    def __init__(
        self, server: str, model: str, *, version: int | None = None, timeout: float = 60.0, columns: bool = False
    ) -> None:
        self.url = rest_url(server, model, version)
        self.timeout = timeout
        self.columns = columns

    def __call__(self, images: Images) -> list[ImageDetections]:
        """Detect in one batch.

        Raises:
            DataError: when the server refuses the request, for example an image it cannot decode.
            ServerError: when there is no useful answer.
        """
        body = json.dumps(rest_request(images, columns=self.columns)).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                reply = json.loads(response.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            raise _rest_error(self.url, error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise ServerError(_too_slow(self.url, self.timeout)) from error
            raise ServerError(f"{self.url}: cannot be reached: {_text(reason)}") from error
        except ValueError as error:
            raise ServerError(f"{self.url}: the answer is not JSON; is this the server's REST port?") from error
        return _read_answer(self.url, parse_rest_response, reply)


class GrpcClient:
    """A model on a server, by gRPC; needs the `serving` extra.

    Args:
        server: such as "localhost:8500".
        model: name of the model on the server.
        version: number of a version; the newest that is loaded if None.
        timeout: seconds to wait for an answer.

    Raises:
        ServerError: when `server` is an http address, or tensorflow-serving-api is not installed.
    """

    def __init__(self, server: str, model: str, *, version: int | None = None, timeout: float = 60.0) -> None:
        if "://" in server:
            raise ServerError(f"{server}: a gRPC server is given as host:port, such as localhost:8500")
        grpc, _, service = _serving_api()
        sizes = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
        self._channel = grpc.insecure_channel(server, options=[(name, MAX_MESSAGE_BYTES) for name in sizes])
        self._predict = service.PredictionServiceStub(self._channel).Predict
        self.server, self.model, self.version, self.timeout = server, model, version, timeout

    def __call__(self, images: Images) -> list[ImageDetections]:
        """Detect in one batch; raises what `RestClient` does."""
        grpc, _, _ = _serving_api()
        name = f"{self.server}, model {self.model}"
        try:
            response = self._predict(grpc_request(images, self.model, version=self.version), timeout=self.timeout)
        except grpc.RpcError as error:
            raise _grpc_error(name, self.timeout, error) from error
        return _read_answer(name, parse_grpc_response, response)


def rest_url(server: str, model: str, version: int | None = None) -> str:
    """Address of a model's predict method, with /versions/N when a version is given.

    Raises:
        ServerError: when `server` is not an http or https address.
    """
    if not server.startswith(("http://", "https://")):
        raise ServerError(f"{server}: a REST server is given as http://host:port, such as http://localhost:8501")
    place = "" if version is None else f"/versions/{version}"
    return f"{server.rstrip('/')}/v1/models/{model}{place}:predict"


def rest_request(images: Images, *, columns: bool = False) -> dict[str, Any]:
    """Make the body of a REST request, ready for JSON.

    Args:
        images: files, or pixels uint8 [B, H, W, 3].
        columns: the column format {"inputs": {name: [...]}}, not the row format {"instances": [{name: ...}, ...]}.
    """
    signature, name = _signature(images)
    if isinstance(images, np.ndarray):
        values = images.tolist()
    else:
        values = [{"b64": base64.b64encode(data).decode()} for data in images]
    if columns:
        return {"signature_name": signature, "inputs": {name: values}}
    return {"signature_name": signature, "instances": [{name: value} for value in values]}


def parse_rest_response(reply: Any) -> list[ImageDetections]:
    """Read the body of a REST answer in row format ("predictions") or column format ("outputs").

    Raises:
        LookupError, TypeError, ValueError: when it does not hold detections.
    """
    rows = reply["predictions"] if "predictions" in reply else split_by_image(reply["outputs"])
    return [read_served(row) for row in rows]


def grpc_request(images: Images, model: str, *, version: int | None = None) -> Any:
    """Make a `PredictRequest`; see `rest_request`."""
    _, messages, _ = _serving_api()
    signature, name = _signature(images)
    request = messages.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    request.inputs[name].CopyFrom(tf.make_tensor_proto(images))
    return request


def parse_grpc_response(response: Any) -> list[ImageDetections]:
    """Read a `PredictResponse`; raises what `parse_rest_response` does."""
    columns = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    return [read_served(row) for row in split_by_image(columns)]


def predict_on_server(client: Client, paths: Sequence[Path], output: str | Path, *, score: float) -> list[str]:
    """Send files one by one and write what `predict_files` writes into `predictions.json`.

    Args:
        client: a `RestClient` or a `GrpcClient`.
        paths: JPEG or PNG files.
        output: a new file that ends with .json, or a folder for predictions.json.
        score: detections that score more than this are written.

    Returns:
        One line for every file that could not be read or that the server refused.

    Raises:
        DataError: when the output exists.
        ServerError: when the server fails; what was detected before is written.
    """
    output = to_path(output)
    file = output if output.suffix == ".json" else output / RESULT_FILES["json"]
    require_absent(file)
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    failure = None
    for path in tqdm(paths, unit="image", disable=len(paths) < 2):
        try:
            rows.append(_detect_file(client, path, score))
            tqdm.write(f"{path}: {len(rows[-1]['detections'])} detection(s) above {score:.2f}")
        except DataError as error:
            faults.append(str(error))
        except ServerError as error:
            failure = error
            break
    if rows or not failure:
        with new_file(file) as partial:
            write_json(partial, rows)
    if failure:
        raise failure
    return faults


def _detect_file(client: Client, path: Path, score: float) -> dict[str, Any]:
    """One row of predictions.json."""
    image = read_image(path)
    try:
        [result] = client([read_image_file(path)])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return describe_image(path, image.shape[:2], result.above(score))


def _serving_api() -> tuple[Any, Any, Any]:
    """The modules of gRPC, of the predict messages and of the service."""
    try:
        import grpc
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise ServerError(f"gRPC needs tensorflow-serving-api: {pip_install('serving')}, or use REST") from error
    return grpc, predict_pb2, prediction_service_pb2_grpc


def _signature(images: Images) -> tuple[str, str]:
    """The signature that takes such images, and the name of its input."""
    if not isinstance(images, np.ndarray):
        return "serving_default", "image_bytes"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"`images` must be files or uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
    return "serve_image", "images"


def _read_answer(name: str, parse: Callable[[Any], list[ImageDetections]], answer: Any) -> list[ImageDetections]:
    try:
        return parse(answer)
    except (LookupError, TypeError, ValueError) as error:
        advice = "the answer holds no detections; is it a model that dh-keras export wrote?"
        raise ServerError(f"{name}: {advice} ({_text(error)})") from error


def _rest_error(url: str, error: urllib.error.HTTPError) -> UserError:
    """What the server says, in one line."""
    body = error.read().decode(errors="replace")
    try:
        message = _text(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        message = _text(body) or error.reason
    return _server_says(url, message, refused=error.code == 400, unknown=error.code == 404)


def _grpc_error(name: str, timeout: float, error: Any) -> UserError:
    """What the server says, in one line."""
    code, message = error.code().name, _text(error.details())
    if code == "DEADLINE_EXCEEDED":
        return ServerError(_too_slow(name, timeout))
    if code == "UNAVAILABLE":
        return ServerError(f"{name}: cannot be reached, or is too busy: {message}")
    refused = code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE")
    return _server_says(name, message, refused=refused, unknown=code == "NOT_FOUND")


def _server_says(name: str, message: str, *, refused: bool, unknown: bool) -> UserError:
    if refused:
        return DataError(f"{name}: the server refuses the request: {message}")
    advice = "; check the model's name and version, or wait until it is loaded" if unknown else ""
    return ServerError(f"{name}: the server answers: {message}{advice}")


def _too_slow(name: str, timeout: float) -> str:
    return f"{name}: no answer within {timeout:g} seconds; a longer --timeout may help"


def _text(message: object) -> str:
    return one_line(getattr(message, "strerror", None) or message)

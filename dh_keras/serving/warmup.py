"""Warm-up requests of a SavedModel: TensorFlow Serving runs them before it answers anybody.

The first run of a graph is slow. The records are `tensorflow.serving.PredictionLog` messages. The few fields that they
need are declared here, so that nothing of TensorFlow Serving must be installed.
Letters: B batch, H W C.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from dh_keras.files import replaced_file

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"

# (height, width) in pixels of the photographs in the requests. The model resizes them to the size it works in, so small
# ones warm up the same computation.
LANDSCAPE = (240, 320)
PORTRAIT = (320, 240)
SQUARE = (240, 240)
JPEG_QUALITY = 80

# Photographs of the requests of serving_default: every batch size that deploy/batching.config allows. On a GPU every
# one of them on every canvas, because its library measures the ways to convolve for each.
MIXED = ((LANDSCAPE, PORTRAIT), (LANDSCAPE, PORTRAIT, LANDSCAPE, LANDSCAPE))
BATCHES = {
    "cpu": ((LANDSCAPE,), (PORTRAIT,), *MIXED),
    "gpu": (*((size,) * number for number in (1, 2, 4) for size in (LANDSCAPE, PORTRAIT, SQUARE)), *MIXED),
}

# The part of TensorFlow Serving's messages that a request needs. A field of bytes is written like the message in it.
_SCHEMA = """
name: "warmup.proto" syntax: "proto3"
message_type { name: "ModelSpec"
  field { name: "name" number: 1 type: TYPE_STRING }
  field { name: "signature_name" number: 3 type: TYPE_STRING } }
message_type { name: "Input"
  field { name: "key" number: 1 type: TYPE_STRING }
  field { name: "value" number: 2 type: TYPE_BYTES } }
message_type { name: "PredictRequest"
  field { name: "model_spec" number: 1 type: TYPE_MESSAGE type_name: ".ModelSpec" }
  field { name: "inputs" number: 2 type: TYPE_MESSAGE type_name: ".Input" label: LABEL_REPEATED } }
message_type { name: "PredictLog"
  field { name: "request" number: 1 type: TYPE_MESSAGE type_name: ".PredictRequest" } }
message_type { name: "PredictionLog"
  field { name: "predict_log" number: 6 type: TYPE_MESSAGE type_name: ".PredictLog" } }
"""


@dataclass(frozen=True, eq=False)
class WarmupRequest:
    """One request.

    Args:
        signature: name of a signature of the SavedModel.
        inputs: value of every input of the signature, what `tf.make_tensor_proto` takes.
    """

    signature: str
    inputs: dict[str, Any]


def warmup_requests(target: str = "cpu", rois: Sequence[int] = ()) -> list[WarmupRequest]:
    """Make requests for all signatures, the same in every call.

    Args:
        target: the one of `TARGETS` that the graph is for.
        rois: see `ServingModule.warm_up_rois`.

    Returns:
        serving_default with the `BATCHES` of JPEG files of the target; serve_image with one image; warm_up with each
        number of RoIs.
    """
    random, encode = np.random.default_rng(0), functools.partial(tf.io.encode_jpeg, quality=JPEG_QUALITY)
    requests = [
        WarmupRequest("serving_default", {"image_bytes": [encode(_photograph(random, size)).numpy() for size in sizes]})
        for sizes in BATCHES[target]
    ]
    requests.append(WarmupRequest("serve_image", {"images": _photograph(random, LANDSCAPE)[None]}))
    return [*requests, *(WarmupRequest("warm_up", {"rois": np.array([number], np.int32)}) for number in rois)]


def write_warmup_requests(path: str | Path, requests: Sequence[WarmupRequest]) -> Path:
    """Write requests where TensorFlow Serving looks for them.

    The server refuses a model one of whose warm-up requests fails, and takes at most 1000.

    Args:
        path: a SavedModel folder, such as models/cells/1; the folder above it names the model.
        requests: in the order in which the server runs them.

    Returns:
        The file, a TFRecord of `PredictionLog` messages.

    Example:
        >>> write_warmup_requests("models/cells/1", warmup_requests())
    """
    file = Path(path) / WARMUP_FILE
    model_name = Path(path).resolve().parent.name
    with replaced_file(file) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        for request in requests:
            writer.write(_prediction_log(model_name, request))
    return file


def _photograph(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise on a gradient, uint8 [H, W, 3]."""
    rows, columns = np.linspace(0, 100, size[0]), np.linspace(0, 100, size[1])
    gradient = (rows[:, None] + columns)[:, :, None] + np.array([0.0, 20.0, 40.0])
    return (gradient + random.uniform(-10, 10, gradient.shape)).clip(0, 255).astype(np.uint8)


def _prediction_log(model_name: str, request: WarmupRequest) -> bytes:
    """A serialised `PredictionLog` that holds a `PredictRequest`."""
    pool = descriptor_pool.DescriptorPool()  # apart from the messages of TensorFlow Serving, if they are imported too
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    log = message_factory.GetMessageClass(pool.FindMessageTypeByName("PredictionLog"))()
    message = log.predict_log.request
    message.model_spec.name, message.model_spec.signature_name = model_name, request.signature
    for name, value in request.inputs.items():
        message.inputs.add(key=name, value=tf.make_tensor_proto(value).SerializeToString())
    return log.SerializeToString()

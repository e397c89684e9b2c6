"""The warm-up file: TensorFlow Serving's own classes read it, and the exported model answers every record."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from dh_keras.inference.detector import Detector
from dh_keras.modeling.variants import VARIANTS
from dh_keras.run.classes import Category
from dh_keras.serving.export import export_saved_model
from dh_keras.serving.warmup import WarmupRequest, warmup_requests, write_warmup_requests

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(scope="module")
def saved_model(tiny_export, tmp_path_factory):
    return Path(shutil.copytree(tiny_export, tmp_path_factory.mktemp("models") / "cells" / "1"))


def read_logs(file):
    return [
        prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(file))
    ]


def test_every_record_is_a_predict_request_for_the_model_and_a_signature(saved_model):
    file = write_warmup_requests(saved_model, warmup_requests())
    assert file == saved_model / "assets.extra" / "tf_serving_warmup_requests"
    logs = read_logs(file)
    assert [log.WhichOneof("log_type") for log in logs] == ["predict_log"] * 5
    requests = [log.predict_log.request for log in logs]
    assert {request.model_spec.name for request in requests} == {"cells"}
    assert not any(request.model_spec.HasField("version") for request in requests)
    shapes = [
        (request.model_spec.signature_name, name, tensor.dtype, tf.make_ndarray(tensor).shape)
        for request in requests
        for name, tensor in request.inputs.items()
    ]
    assert shapes == [
        ("serving_default", "image_bytes", tf.string.as_datatype_enum, (1,)),
        ("serving_default", "image_bytes", tf.string.as_datatype_enum, (1,)),
        ("serving_default", "image_bytes", tf.string.as_datatype_enum, (2,)),
        ("serving_default", "image_bytes", tf.string.as_datatype_enum, (4,)),
        ("serve_image", "images", tf.uint8.as_datatype_enum, (1, 240, 320, 3)),
    ]


def test_no_record_holds_a_field_that_tensorflow_serving_does_not_know(saved_model):
    for log in read_logs(write_warmup_requests(saved_model, warmup_requests())):
        rebuilt = prediction_log_pb2.PredictionLog()
        request = rebuilt.predict_log.request
        request.model_spec.name = "cells"
        request.model_spec.signature_name = log.predict_log.request.model_spec.signature_name
        for name, tensor in log.predict_log.request.inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(tf.make_ndarray(tensor)))
        assert log.SerializeToString(deterministic=True) == rebuilt.SerializeToString(deterministic=True)


def test_the_values_arrive_as_they_were_given(tmp_path):
    given = WarmupRequest(
        "größe",
        {"text": [b"\0\xff" * 100, b""], "numbers": np.arange(70000, dtype=np.int64).reshape(7, 10000)},
    )
    (tmp_path / "müller" / "1").mkdir(parents=True)
    [log] = read_logs(write_warmup_requests(tmp_path / "müller" / "1", [given]))
    request = log.predict_log.request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("müller", "größe")
    assert tf.make_ndarray(request.inputs["text"]).tolist() == given.inputs["text"]
    np.testing.assert_array_equal(tf.make_ndarray(request.inputs["numbers"]), given.inputs["numbers"])


def test_the_exported_model_answers_every_record(saved_model):
    file = write_warmup_requests(saved_model, warmup_requests())
    signatures = tf.saved_model.load(str(saved_model)).signatures
    counts = []
    for log in read_logs(file):
        request = log.predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](**inputs)
        assert outputs["detection_boxes"].shape[1:] == (10, 4)
        counts.append(len(outputs["num_detections"]))
    assert counts == [1, 1, 2, 4, 1]


def test_the_photographs_lie_and_stand_and_the_file_is_small_and_always_the_same(tmp_path):
    *encoded, decoded = warmup_requests()
    sizes = [[tf.io.decode_jpeg(data).shape.as_list() for data in one.inputs["image_bytes"]] for one in encoded]
    landscape, portrait = [240, 320, 3], [320, 240, 3]
    assert sizes == [[landscape], [portrait], [landscape, portrait], [landscape, portrait, landscape, landscape]]
    assert decoded.inputs["images"].std() > 20
    for name in ("a", "b"):
        (tmp_path / name / "model" / "1").mkdir(parents=True)
        file = write_warmup_requests(tmp_path / name / "model" / "1", warmup_requests())
        assert 200_000 < file.stat().st_size < 600_000
    first, second = (path.read_bytes() for path in sorted(tmp_path.rglob("tf_serving_warmup_requests")))
    assert first == second


@pytest.mark.slow
def test_for_a_gpu_every_batch_comes_in_every_shape_and_the_conv_head_with_every_number(tiny_run, tmp_path):
    detector = Detector.load(tiny_run, target="gpu")
    path = export_saved_model(detector, tmp_path / "m" / "1")
    signatures = tf.saved_model.load(str(path)).signatures
    batches, numbers = [], []
    for log in read_logs(path / "assets.extra" / "tf_serving_warmup_requests"):
        request = log.predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](**inputs)
        assert len({len(value) for value in (*inputs.values(), *outputs.values())}) == 1  # a server joins requests
        if request.model_spec.signature_name == "serving_default":
            shapes = [tuple(tf.io.decode_jpeg(data).shape[:2]) for data in inputs["image_bytes"].numpy()]
            batches.append((len(shapes), frozenset(shapes)))
        elif request.model_spec.signature_name == "warm_up":
            numbers += inputs["rois"].numpy().tolist()
    shapes = [{(240, 320)}, {(320, 240)}, {(240, 240)}]
    expected = {(number, frozenset(shape)) for number in (1, 2, 4) for shape in shapes}
    assert set(batches) == expected | {(number, frozenset({(240, 320), (320, 240)})) for number in (2, 4)}
    assert len(batches) == 11
    assert numbers == [64]


@pytest.mark.parametrize(("most", "numbers"), [(1000, [64, 128, 256, 512, 1024]), (512, [64, 128, 256, 512])])
def test_the_conv_head_is_warmed_up_for_all_numbers_of_rois_up_to_those_of_one_image(make_tiny_detector, most, numbers):
    detectors = [make_tiny_detector(f"model.variant={name}", f"model.rpn.post_nms_test={most}") for name in VARIANTS]
    for detector in detectors:
        module = Detector.from_model(detector, [Category(1, "a")] * 3, min_size=96, max_size=128).module
        assert module.warm_up_rois == []
        module.target = "gpu"
        assert module.warm_up_rois == (numbers if detector.variant.scores_before_boxes else [])


def test_nothing_of_tensorflow_serving_is_imported(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorflow_serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    assert write_warmup_requests(tmp_path, warmup_requests()).is_file()

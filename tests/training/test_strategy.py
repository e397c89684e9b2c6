"""What TensorFlow is asked for, on machines that are not there."""

import types

import pytest
import tensorflow as tf

from dh_keras.training.strategy import make_strategy

ALONE = types.SimpleNamespace(num_replicas_in_sync=1)


@pytest.mark.parametrize(("gpus", "way"), [(["a GPU", "another"], "NCCL"), ([], "AUTO")])
def test_gpus_of_several_workers_sum_over_nccl(monkeypatch, gpus, way):
    asked = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: None)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda **options: asked.append(options) or ALONE)
    assert make_strategy("multi_worker") is ALONE
    ((name, options),) = asked[0].items()
    assert name == "communication_options"
    assert options.implementation.value == way

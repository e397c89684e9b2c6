"""What a GPU computes is what the CPU does, and it learns in every precision; `pytest -m gpu` where there is one."""

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.ops.machine import traced_for
from dh_keras.modeling.optimizer import RecipeSGD

pytestmark = pytest.mark.gpu
STEPS = 10


@pytest.fixture(autouse=True)
def exact_products():
    """A GPU's float32 products have 10 bits of precision unless this is said."""
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("needs a GPU")
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(True)


def run_steps(overrides, batch, *, device, precision):
    """The losses of `STEPS` steps on the same batch, each a dict of floats, and the trained detector."""
    with tf.device(f"{device}:0"), traced_for(device.lower()):
        config = load_config(overrides=overrides)
        detector = assemble_detector(config.model, num_classes=3, seed=0, precision=precision)
        detector.compile(RecipeSGD(0.01, momentum=0.9), report="step")
        step = tf.function(detector.train_step, autograph=False)
        steps = [step(batch) for _ in range(STEPS)]
    losses = [{name: float(value) for name, value in logs.items() if name.endswith("loss")} for logs in steps]
    return losses, detector


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_steps_in_float32_are_those_of_the_cpu(tiny_overrides, batch, norm):
    overrides = [*tiny_overrides, f"model.conv_head.norm={norm}"]
    on_gpu, trained = run_steps(overrides, batch, device="GPU", precision="float32")
    on_cpu, expected = run_steps(overrides, batch, device="CPU", precision="float32")
    assert "GPU" in trained.trainable_variables[0].value.device
    assert "CPU" in expected.trainable_variables[0].value.device
    assert on_gpu[-1]["total_loss"] < on_gpu[0]["total_loss"]
    for here, there in zip(on_gpu, on_cpu, strict=True):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-4)
    for here, there in zip(trained.trainable_variables, expected.trainable_variables, strict=True):
        np.testing.assert_allclose(here.numpy(), there.numpy(), rtol=1e-2, atol=1e-4, err_msg=here.path)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_steps_in_half_of_the_bits_learn(tiny_overrides, batch, precision):
    halves, _ = run_steps(tiny_overrides, batch, device="GPU", precision=precision)
    full, _ = run_steps(tiny_overrides, batch, device="GPU", precision="float32")
    assert halves[0]["total_loss"] == pytest.approx(full[0]["total_loss"], rel=0.05)
    assert halves[-1]["total_loss"] < halves[0]["total_loss"]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_detections_are_those_of_the_cpu_and_none_are_no_trouble(make_tiny_detector, batch, threshold):
    found = {}
    for device in ("GPU", "CPU"):
        with tf.device(f"{device}:0"), traced_for(device.lower()):
            detector = make_tiny_detector()
            detector.score_threshold = threshold
            detections = detector.detect(detector(batch, training=False), batch["image_sizes"])
            found[device] = {name: value.numpy() for name, value in detections._asdict().items()}
    assert found["GPU"]["num_detections"].any() == (threshold == 0.0)
    for name, values in found["CPU"].items():
        np.testing.assert_allclose(found["GPU"][name], values, rtol=1e-3, atol=1e-3, err_msg=name)

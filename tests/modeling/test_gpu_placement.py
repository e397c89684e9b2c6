"""The training step and the served graph keep a GPU busy: it has kernels for them, and little is copied to the host."""

import pytest
import tensorflow as tf
from gpu_placement import large, placement

from dh_keras.config.load import load_config
from dh_keras.inference.serving_module import ServingModule
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.ops.matching import match_boxes
from dh_keras.modeling.ops.roi_align import roi_align, roi_levels
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.run.classes import Category

# Copies that are no scalars; what is in a loop over images counts once. In training, to the host: the seed of an image
# for each of the two samplings.
TRAINING_TO_HOST, TRAINING_TO_DEVICE = 2, 11
# In serving: the pixels, sizes and detections, and what branches of the preparation take, which run on the CPU.
SERVING_TO_HOST, SERVING_TO_DEVICE = 9, 7


@pytest.fixture(autouse=True)
def as_with_a_gpu(monkeypatch):
    """What is done differently for a CPU alone is not."""
    real = tf.config.list_logical_devices
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"] if kind == "GPU" else real(kind))


def strange(found):
    """Operations without a kernel that are neither about strings nor about the time."""
    return {op for op in found.without_kernel if "string" not in op and not op.startswith("Timestamp")}


@pytest.mark.parametrize(
    ("precision", "report"),
    [("float32", "step"), ("mixed_float16", "step"), ("mixed_bfloat16", "step"), ("float32", "epoch")],
)
def test_a_training_step_runs_on_the_gpu_and_copies_little(tiny_overrides, batch, precision, report):
    config = load_config(overrides=tiny_overrides)
    detector = assemble_detector(config.model, num_classes=3, precision=precision)
    detector.compile(RecipeSGD(0.01), report=report)
    spec = {name: tf.TensorSpec([None] * value.shape.rank, value.dtype) for name, value in batch.items()}
    sizes = {"images": [None, None, None, 3], "image_sizes": [None, 2], "gt_boxes": [None, None, 4]}
    spec |= {name: tf.TensorSpec(shape, spec[name].dtype) for name, shape in sizes.items()}
    step = tf.function(detector.train_step, input_signature=[spec], autograph=False)
    found = placement(step.get_concrete_function().graph)
    assert strange(found) == set()
    assert len(large(found.to_host)) <= TRAINING_TO_HOST, "\n".join(found.to_host)
    assert len(large(found.to_device)) <= TRAINING_TO_DEVICE, "\n".join(found.to_device)


def test_what_is_served_runs_on_the_gpu_once_the_images_are_there(make_tiny_detector):
    module = ServingModule(make_tiny_detector(), [Category(7, "cell")] * 3, min_size=96, max_size=128)
    found = placement(module.serve_bytes.get_concrete_function().graph)
    assert strange(found) == set()
    assert len(large(found.to_host)) <= SERVING_TO_HOST, "\n".join(found.to_host)
    assert len(large(found.to_device)) <= SERVING_TO_DEVICE, "\n".join(found.to_device)


def test_what_only_some_recipes_use_copies_nothing_large_to_the_host():
    features = {f"P{level}": tf.TensorSpec([None, None, None, 4]) for level in range(2, 6)}

    @tf.function(autograph=False)
    def compute(features, boxes, image_index, overlaps):
        pooled = roi_align(features, boxes, image_index, roi_levels(boxes), sampling_ratio=0)
        options = {"foreground_iou": 0.7, "background_iou": 0.3, "low_quality_iou": 0.3, "low_quality_own_box": True}
        return pooled, match_boxes(overlaps, overlaps[0] > 0.0, **options)

    boxes, image_index = tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int64)
    found = placement(compute.get_concrete_function(features, boxes, image_index, tf.TensorSpec([None, None])).graph)
    assert found.without_kernel == set()
    assert large(found.to_host) == []


def traced(function, *specs):
    return placement(tf.function(function, autograph=False).get_concrete_function(*specs).graph)


def test_arithmetic_with_int32_is_found_also_in_a_loop():
    def indices(row):
        return tf.cast(tf.cast(row, tf.int32) + 1, tf.float32)

    found = traced(lambda x: tf.map_fn(indices, x), tf.TensorSpec([None, None]))
    assert found.without_kernel == set()
    assert [line.split(" (")[0] for line in large(found.to_host)] == ["(None,) int32: Cast"]
    assert [line.split(" (")[0] for line in large(found.to_device)] == ["(None,) int32: AddV2"]
    as_int64 = traced(lambda x: tf.cast(tf.cast(x, tf.int64) + 1, tf.float32), tf.TensorSpec([None, None]))
    assert (as_int64.to_host, as_int64.to_device) == ([], [])


def test_scalars_are_told_apart():
    found = traced(lambda x: tf.cast(tf.cast(tf.reduce_max(x), tf.int32) + 1, tf.float32), tf.TensorSpec([None]))
    assert (len(found.to_host), large(found.to_host)) == (1, [])


def test_an_operation_for_cpus_alone_is_found_and_its_arguments_are_copied():
    found = traced(tf.random.shuffle, tf.TensorSpec([None]))
    assert found.without_kernel == {"RandomShuffle: float32"}
    assert len(found.to_host) == 1


def test_what_is_put_on_the_cpu_on_purpose_is_no_surprise_but_is_copied():
    def shuffle(x):
        with tf.device("CPU:0"):
            return tf.random.shuffle(x + 1.0)

    found = traced(shuffle, tf.TensorSpec([None]))
    assert found.without_kernel == set()
    assert len(found.to_host) == 1

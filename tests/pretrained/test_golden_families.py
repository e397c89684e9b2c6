"""Narrow models of both families against numbers from plain PyTorch functions (golden/make_golden.py)."""

from pathlib import Path

import numpy as np
import published
import pytest
import tensorflow as tf

from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.variables import variables_by_path
from dh_keras.pretrained import authors, mmdetection
from dh_keras.pretrained.tensors import assign_tensors, unused_tensors

GOLDEN = Path(__file__).resolve().parent / "golden" / "published_families.npz"
HEIGHT, WIDTH = 96, 160
# As in make_golden.py, with y first.
ROIS = np.array(
    [
        [20.7, 10.3, 71.9, 60.1],
        [5.0, 100.0, 90.0, 112.0],
        [40.0, 3.0, 52.0, 155.0],
        [-10.0, -20.0, 25.0, 30.0],
        [100.0, 170.0, 120.0, 190.0],
        [50.4, 50.2, 50.9, 51.0],
        [0.0, 0.0, 96.0, 160.0],
        [-150.0, -100.0, 300.0, 260.0],
    ],
    np.float32,
)


class Family:
    """One family's converted model and its golden numbers."""

    def __init__(self, name):
        module = {"authors": authors, "mmdetection": mmdetection}[name]
        shapes = {"authors": published.authors_shapes, "mmdetection": published.mmdetection_shapes}[name]
        tensors = published.make_tensors(shapes(**published.NARROW, **({"prefix": ""} if name == "authors" else {})))
        config, num_classes = module.infer_config(tensors, name)
        self.rules = module.rules(config)
        unused_tensors(tensors, self.rules, unused=module.UNUSED, source=name)
        self.model = assemble_detector(config.model, num_classes=num_classes)
        self.variables = variables_by_path(self.model)
        assign_tensors(tensors, self.rules, self.variables, source=name)
        with np.load(GOLDEN) as archive:
            self.golden = {key.partition("/")[2]: archive[key] for key in archive if key.startswith(f"{name}/")}
        self.stages = self.model.backbone(tf.constant(make_image()), training=False)
        self.pyramid = self.model.fpn(self.stages)

    def check(self, name, ours, tolerance):
        ours = np.asarray(ours)
        expected = self.golden[name]
        ours = ours[::3, ::3] if ours.size > 4000 else ours
        assert ours.shape == expected.shape, name
        assert np.abs(ours - expected).max() < tolerance * np.abs(expected).max(), name


def make_image():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = [np.sin(0.11 * x + 0.07 * y), np.cos(0.05 * x - 0.13 * y), np.sin(0.003 * x * y)]
    return np.stack(image, axis=-1)[None].astype(np.float32)


def pattern(shape):
    """What the outputs are weighted with, in PyTorch's order of axes."""
    return np.cos(np.arange(np.prod(shape)) * 0.37).reshape(shape).astype(np.float32)


def xy_first(deltas):
    return tf.gather(deltas, [1, 0, 3, 2], axis=-1)


def outputs_of(family, pyramid, *, training):
    outputs = family.model.run_heads(pyramid, tf.constant(ROIS), tf.zeros(len(ROIS), tf.int32), training=training)
    return {name: xy_first(value) if "deltas" in name else value for name, value in outputs.items()}


def maps_of(family, pyramid):
    """RPN outputs as [H, W, channels], deltas with x first."""
    logits, deltas = family.model.rpn_head(pyramid)
    for level, features in pyramid.items():
        height, width = features.shape[1:3]
        yield f"objectness_{level}", tf.reshape(logits[level], [height, width, -1])
        yield f"anchor_deltas_{level}", tf.reshape(xy_first(deltas[level]), [height, width, -1])


@pytest.fixture(scope="module", params=["authors", "mmdetection"])
def family(request):
    return Family(request.param)


def test_stages_and_pyramid(family):
    for name, features in {**family.stages, **family.pyramid}.items():
        family.check(name, features[0], 1e-4)


def test_rpn_outputs(family):
    for name, values in maps_of(family, family.pyramid):
        family.check(name, values, 1e-4)


def test_roi_align(family):
    for kind, pool in family.model.roi_align.items():
        pooled = pool(family.pyramid, tf.constant(ROIS), tf.zeros(len(ROIS), tf.int32))
        family.check(f"roi_{kind}", pooled, 1e-4)


def test_head_outputs_with_moving_statistics(family):
    for name, values in outputs_of(family, family.pyramid, training=False).items():
        family.check(name, values, 1e-3)


def test_head_outputs_with_batch_statistics_and_gradients_of_every_tensor(family):
    moving = {path: variable.numpy() for path, variable in family.variables.items() if "moving_" in path}
    rules = {rule.sources[0]: rule for rule in family.rules if rule.combine is None}
    golden = dict(zip(family.golden["gradient_names"], family.golden["gradient_norms"], strict=True))
    names = [name for name in golden if name in rules]
    watched = [family.variables[rules[name].target].value for name in names]
    # One pixel of the stem is zero but for rounding before its ReLU. A millionth of brightness takes it off the fence.
    image = tf.constant(make_image() * np.float32(1 + 1e-6))
    with tf.GradientTape() as tape:
        tape.watch(watched)
        pyramid = family.model.fpn(family.model.backbone(image, training=True))
        outputs = outputs_of(family, pyramid, training=True)
        total = tf.add_n([tf.reduce_sum(value * pattern(value.shape)) for value in outputs.values()])
        for _, values in maps_of(family, pyramid):
            values = tf.transpose(values, [2, 0, 1])
            total += tf.reduce_sum(values * pattern(values.shape))
    gradients = tape.gradient(total, watched)
    for path, value in moving.items():
        family.variables[path].assign(value)
    for name, values in outputs.items():
        family.check(f"trained_{name}", values, 1e-3)
    assert len(names) > 180
    largest = max(golden.values())
    for name, gradient in zip(names, gradients, strict=True):
        # Where a norm follows, the gradient of a bias is zero but for rounding.
        assert abs(float(tf.norm(gradient)) - golden[name]) < 1e-3 * golden[name] + 1e-6 * largest, name

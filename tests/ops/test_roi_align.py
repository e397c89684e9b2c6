"""RoIAlign: values and gradients against the slow definition, and two examples worked by hand."""

import numpy as np
import numpy_boxes
import pytest
import tensorflow as tf
from ops import roi_align_oracle as oracle

from dh_keras.ops.roi_align import roi_align, roi_levels

CHANNELS = 3
# An image of 511 x 690 pixels; no side divides by 64, and no level is square.
MAP_SIZES = {"P2": (128, 173), "P3": (64, 87), "P4": (32, 44), "P5": (16, 22)}
BOTH_GEOMETRIES = pytest.mark.parametrize("geometry", ["continuous", "legacy"])
ALL_RATIOS = pytest.mark.parametrize("sampling_ratio", [1, 2, 3, 0])
TOLERANCE = 1e-4

SPECIAL_ROIS = {
    "zero size": [[100.3, 50.7, 100.3, 50.7], [0, 0, 0, 0], [20, 30, 20, 90], [20, 30, 90, 30], [511, 690, 511, 690]],
    "tiny": [[100.3, 50.7, 100.9, 51.1], [0, 0, 1, 1], [510, 689, 511, 690], [8, 8, 9.5, 40]],
    "huge": [[0, 0, 511, 690], [-300, -200, 900, 1100], [-5, -5, 520, 700.5]],
    "outside": [[-90, 10, -50, 60], [10, -95, 70, -40], [600, 10, 700, 90], [10, 800, 60, 900], [-500, -500, -200, -100]],
    "inverted": [[120, 200, 80, 240], [120, 240, 150, 200], [300, 400, 100, 150]],
    "borders": [[0, 100.5, 60, 180], [100.5, 0, 160, 50], [450, 100, 511, 200.7], [100, 620, 190.3, 690]],
    "across": [[-20, 100, 40, 160], [100, -13, 130, 30], [480.5, 300, 540, 380], [200, 670, 260, 730], [-9, -9, 9, 9]],
    "long": [[10, 20, 18, 680], [5, 300, 500, 310], [0, 0, 511, 4]],
    "whole cells": [[28, 56, 84, 168], [0, 0, 28, 28], [2, 2, 30, 30]],
}


@pytest.fixture(scope="module")
def features():
    generator = np.random.default_rng(0)
    return {
        level: generator.normal(size=(2, height, width, CHANNELS)).astype(np.float32)
        for level, (height, width) in MAP_SIZES.items()
    }


@tf.function(
    input_signature=[
        {level: tf.TensorSpec([None, None, None, CHANNELS]) for level in MAP_SIZES},
        tf.TensorSpec([None, 4]),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None, 7, 7, CHANNELS]),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.bool),
    ]
)
def values_and_gradients_of_unknown_shapes(features, rois, image_index, levels, upstream, sampling_ratio, legacy):
    raise NotImplementedError


def run(features, rois, image_index, levels, upstream, *, sampling_ratio, geometry):
    """Pooled features and the gradients of sum(pooled * upstream), in a graph that knows no sizes."""
    unknown = tf.TensorSpec([None, None, None, CHANNELS])

    @tf.function(
        input_signature=[
            {level: unknown for level in features},
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            unknown,
        ]
    )
    def traced(features, rois, image_index, levels, upstream):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = roi_align(features, rois, image_index, levels, sampling_ratio=sampling_ratio, geometry=geometry)
            assert pooled.shape.as_list() == [None, 7, 7, CHANNELS]
            loss = tf.reduce_sum(pooled * upstream)
        return pooled, tape.gradient(loss, features)

    pooled, gradients = traced(features, rois, np.int32(image_index), np.int32(levels), upstream)
    return pooled.numpy(), {level: gradient.numpy() for level, gradient in gradients.items()}

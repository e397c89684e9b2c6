"""Necessary multiply-adds of a traced graph, and of a training step; a multiply-add is two floating-point operations.

Only the products of convolutions, matrices and interpolation count. Biases, norms, activations, decoding and
suppression do not.

Letters: B batch, R RoIs, H W C.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import CANONICAL_ROI_LEVEL, CANONICAL_ROI_SIZE, ROI_LEVELS, ROI_OUTPUT_SIZE
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.layers.roi_align import RoIAlign

ROI_CELLS = ROI_OUTPUT_SIZE * ROI_OUTPUT_SIZE
PARTS = ("features", "rpn", "heads")


def compile_graph(function: Callable, *inputs: Any) -> Callable:
    """Trace a function into a graph for inputs of these shapes; the only place where the benchmark traces."""
    return tf.function(function, autograph=False).get_concrete_function(*inputs)


def multiply_adds(graph: Callable) -> int:
    """Multiply-adds of a graph of `compile_graph`, all of whose convolutions and matrices have known shapes.

    Raises:
        ConfigError: for grouped convolutions, which Keras hides in functions of their own.
    """
    return sum(_products(op) for op in graph.graph.get_operations())


def gradient_multiply_adds(graph: Callable, variables: Sequence) -> int:
    """Multiply-adds of the gradients of Keras variables through a graph of `compile_graph`.

    A product costs as much again for each of its two factors that depends on one of the variables.
    """
    handles = {id(variable.value.handle) for variable in variables}
    captured = zip(graph.captured_inputs, graph.inputs[-len(graph.captured_inputs) :], strict=True)
    trained = {inside.name for outside, inside in captured if id(outside) in handles}
    total = 0
    for op in graph.graph.get_operations():  # each stands behind those that it depends on
        factors = [tensor.name in trained for tensor in op.inputs]
        total += _products(op) * sum(factors[:2])
        if any(factors) and op.type != "StopGradient":
            trained |= {tensor.name for tensor in op.outputs if tensor.dtype.is_floating}
    return total


def _products(op: tf.Operation) -> int:
    """Multiply-adds of one operation; 0 for those that do not count."""
    if op.type == "Conv2D":
        return math.prod(op.outputs[0].shape) * math.prod(op.inputs[1].shape[:3])
    if op.type == "DepthwiseConv2dNative":
        return math.prod(op.outputs[0].shape) * math.prod(op.inputs[1].shape[:2])
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return math.prod(op.outputs[0].shape) * op.inputs[0].shape[-2 if transposed else -1]
    if op.type == "Einsum":
        letters = op.get_attr("equation").decode().partition("->")[0].split(",")
        shapes = (zip(names, tensor.shape, strict=True) for names, tensor in zip(letters, op.inputs, strict=True))
        return math.prod(dict(itertools.chain(*shapes)).values())
    if op.type.endswith("PartitionedCall"):
        raise ConfigError("key model.backbone.arguments: the operations of grouped convolutions are not counted")
    return 0


def roi_align_multiply_adds(layer: RoIAlign, rois: np.ndarray) -> int:
    """Multiply-adds of RoIAlign per feature channel: one for each cell that a bin takes a share of.

    A fixed number of samples touches four cells each; n adaptive samples along an axis touch n + 1 cells.

    Args:
        layer: gives scale, sampling and geometry.
        rois: float32 [R, 4], pixels of the resized image, unscaled.
    """
    if layer.sampling_ratio > 0:
        return len(rois) * ROI_CELLS * 4 * layer.sampling_ratio**2
    rois = np.asarray(rois, np.float64)
    size = rois[:, 2:] - rois[:, :2]
    level = np.floor(CANONICAL_ROI_LEVEL + np.log2(np.sqrt(size.prod(axis=1)) / CANONICAL_ROI_SIZE + 1e-6))
    stride = 2.0 ** np.clip(level, int(ROI_LEVELS[0][1:]), int(ROI_LEVELS[-1][1:]))[:, None]
    scaled = size * layer.scale
    cells = np.maximum((scaled - 1.0) / stride, 1.0) if layer.geometry == "legacy" else scaled / stride
    samples = np.ceil(cells / ROI_OUTPUT_SIZE)
    return int(ROI_CELLS * (samples + 1.0).prod(axis=1).sum())


def training_gflop(
    detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor], rois: dict[str, np.ndarray]
) -> dict[str, float]:
    """Count the operations of one training step: the forward pass, and of the gradients what some variable needs.

    Left out are predictions that no loss samples, and whatever is computed a second time to save memory.

    Args:
        detector: a built detector.
        batch: see `DoubleHeadRCNN`.
        rois: float32 [R, 4] of all images, in pixels and unscaled, by the kind of the heads that see them.

    Returns:
        Billions of floating-point operations by the names of `PARTS`; "features" are the backbone and the FPN.
    """
    graph = compile_graph(lambda batch: detector.extract_features(batch, training=True), batch)
    features = multiply_adds(graph) + gradient_multiply_adds(graph, detector.trainable_variables)
    pyramid = graph.structured_outputs
    rpn = multiply_adds(compile_graph(lambda pyramid: detector.rpn_head(pyramid), pyramid))
    cells = sum(math.prod(level.shape[:3]) for level in pyramid.values())
    sampled = len(batch["images"]) * detector.rpn.batch_size
    channels = pyramid["P2"].shape[-1]
    heads = sum(2 * channels * roi_align_multiply_adds(detector.roi_align[kind], boxes) for kind, boxes in rois.items())
    for spec in detector.variant.heads:
        head, boxes = detector.heads[spec.name], rois[spec.kind]
        if len(boxes):  # the product, and the gradients of both its factors
            pooled = tf.TensorSpec([len(boxes), ROI_OUTPUT_SIZE, ROI_OUTPUT_SIZE, channels])
            heads += 3 * multiply_adds(compile_graph(lambda features, head=head: head(features), pooled))
    counts = (features, rpn + 2 * sampled * rpn // cells, heads)
    return {part: 2e-9 * count for part, count in zip(PARTS, counts, strict=True)}

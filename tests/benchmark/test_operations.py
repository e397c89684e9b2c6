"""Counts of operations: by hand, published numbers, TensorFlow's profiler, and the gradients of a graph."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.benchmark.case import Case
from dh_keras.benchmark.operations import (
    compile_graph,
    gradient_multiply_adds,
    multiply_adds,
    roi_align_multiply_adds,
    training_gflop,
)
from dh_keras.benchmark.training import make_training_batch
from dh_keras.config.load import load_config
from dh_keras.errors import ConfigError
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.layers.conv_head import ConvHead
from dh_keras.modeling.layers.resnet import ResNet
from dh_keras.modeling.layers.roi_align import RoIAlign
from dh_keras.modeling.ops import roi_align as roi_align_module

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 96, 128
PYRAMID_SIZES = {"P2": (24, 32), "P3": (12, 16), "P4": (6, 8), "P5": (3, 4), "P6": (2, 2)}
CELLS = sum(height * width for height, width in PYRAMID_SIZES.values())


def counted(layer, *shapes, **options):
    """Multiply-adds of a layer for inputs of these shapes."""
    if isinstance(layer, keras.Layer) and not layer.built:
        layer.build(shapes[0])
    return multiply_adds(compile_graph(lambda *inputs: layer(*inputs, **options), *map(tf.TensorSpec, shapes)))


def profiled(graph):
    """Multiply-adds of convolutions and matrix products in a graph, as TensorFlow's own profiler counts them."""
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    node = tf.compat.v1.profiler.profile(graph.graph, options=options, cmd="op")
    total = 0
    while node.children:
        node = node.children[0]
        if node.name in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2"):
            total += node.float_ops
    return total / 2


@pytest.mark.parametrize(
    ("depth", "stride_in_1x1", "published"),
    [(18, False, 1_814_073_344), (50, False, 4_089_184_256), (101, False, 7_801_405_440), (50, True, 3_857_973_248)],
)
def test_backbones_have_the_known_multiply_adds_at_224_pixels(depth, stride_in_1x1, published):
    backbone = ResNet(depth=depth, width=64, stride_in_1x1=stride_in_1x1, frozen_stages=0, norm="frozen")
    classifier = (512 if depth == 18 else 2048) * 1000
    assert counted(backbone, [1, 224, 224, 3], training=False) + classifier == published


def test_the_published_conv_head_has_273_million_multiply_adds_per_roi():
    options = {"non_local_channels": 0, "non_local_groups": 4, "non_local_mode": "dot_product", "norm": "batch"}
    head = ConvHead(channels=1024, blocks=4, num_classes=80, classes=False, boxes=True, **options)
    assert counted(head, [3, 7, 7, 256]) == 3 * (272_957_440 + 1024 * 4 * 80)


def test_operations_of_every_kind_are_counted_as_by_hand():
    assert counted(keras.layers.Conv2D(6, 3, strides=2, padding="same"), [2, 8, 10, 5]) == 2 * 4 * 5 * 6 * 9 * 5
    assert counted(keras.layers.DepthwiseConv2D(3, padding="same"), [2, 8, 10, 5]) == 2 * 8 * 10 * 5 * 9
    assert counted(keras.layers.Dense(7), [4, 5]) == 4 * 5 * 7
    assert counted(keras.layers.Dense(7), [4, 3, 5]) == 4 * 3 * 5 * 7
    assert counted(tf.matmul, [4, 2, 5], [4, 3, 5], transpose_b=True) == 4 * 2 * 5 * 3
    assert counted(tf.matmul, [4, 5, 2], [4, 5, 3], transpose_a=True) == 4 * 2 * 5 * 3
    assert counted(tf.matmul, [5, 2], [5, 3], transpose_a=True) == 2 * 5 * 3
    attention = keras.layers.MultiHeadAttention(2, 8)  # query, key, value and output are 16 x 16
    assert counted(lambda x: attention(x, x), [3, 6, 16]) == 3 * (4 * 6 * 16 * 16 + 2 * 2 * 6 * 6 * 8)
    assert counted(keras.layers.ReLU(), [4, 5]) == 0
    with pytest.raises(ConfigError, match="grouped convolutions are not counted"):
        counted(keras.layers.Conv2D(6, 3, groups=2), [2, 8, 10, 4])


@pytest.mark.parametrize(("depth", "variant"), [(18, "double_head_ext"), (50, "double_conv")])
def test_all_stages_have_the_operations_that_tensorflows_profiler_counts(tiny_overrides, depth, variant):
    changes = [f"model.variant={variant}", f"model.backbone.depth={depth}", "model.conv_head.non_local.channels=8"]
    detector = assemble_detector(load_config(overrides=[*tiny_overrides, *changes]).model, num_classes=3)
    backbone = compile_graph(lambda x: detector.backbone(x, training=False), tf.TensorSpec([1, HEIGHT, WIDTH, 3]))
    fpn = compile_graph(lambda x: detector.fpn(x), backbone.structured_outputs)
    rpn = compile_graph(lambda x: detector.rpn_head(x), fpn.structured_outputs)
    pooled = tf.TensorSpec([5, 7, 7, 16])
    heads = [compile_graph(lambda x, head=head: head(x), pooled) for head in detector.heads.values()]
    for graph in (backbone, fpn, rpn, *heads):
        assert multiply_adds(graph) == profiled(graph) > 0
    assert multiply_adds(rpn) == CELLS * (9 * 16 * 16 + 16 * 5 * 3)
    expansion = 4 if depth > 18 else 1
    channels = zip(list(PYRAMID_SIZES.values())[:4], (8, 16, 32, 64), strict=True)
    assert multiply_adds(fpn) == sum(h * w * 16 * (c * expansion + 9 * 16) for (h, w), c in channels)
    tower = 49 * (9 * 16 * 16 + 2 * 16 * 16 + 2 * 16 * 4 + 9 * 4 * 4 + 4 * 16 * 8) + 2 * 49 * 49 * 8
    per_roi = {"fc_head": 49 * 16 * 16 + 16 * 16 + 16 * (4 + 12), "conv_head": tower + 16 * (4 + 12)}
    if variant == "double_head_ext":
        assert [multiply_adds(graph) for graph in heads] == [5 * per_roi[name] for name in detector.heads]
    else:
        assert [multiply_adds(graph) for graph in heads] == [5 * (tower + 16 * 4), 5 * (tower + 16 * 12)]


def test_a_backbone_of_kerashub_is_counted_as_the_same_network_of_ours():
    pytest.importorskip("keras_hub")
    from dh_keras.modeling.hub_backbone import HubBackbone

    arguments = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": [2, 2, 2, 2],
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "basic_block",
    }
    backbone = HubBackbone(class_name="ResNetBackbone", arguments=arguments, frozen_stages=0, norm="frozen")
    graph = compile_graph(lambda x: backbone(x, training=True), tf.TensorSpec([1, 224, 224, 3]))
    classifier = 512 * 1000
    assert multiply_adds(graph) + classifier == 1_814_073_344
    stem = 112 * 112 * 49 * 3 * 64  # whose input, the images, nothing that is trained stands before
    assert gradient_multiply_adds(graph, backbone.trainable_variables) == 2 * multiply_adds(graph) - stem


def needed_operations(graph):
    """The operations that some output of a graph depends on; TensorFlow runs no others."""
    needed, waiting = {}, [output.op for output in graph.outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed[op.name] = op
            waiting += [tensor.op for tensor in op.inputs]
    return needed.values()


@pytest.mark.parametrize("frozen", [0, 1, 4])
def test_gradients_of_the_features_are_counted_as_the_graph_of_gradients_has_them(tiny_overrides, monkeypatch, frozen):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"])  # stock gradients
    changes = ["model.backbone.depth=50", f"model.backbone.frozen_stages={frozen}"]
    detector = assemble_detector(load_config(overrides=[*tiny_overrides, *changes]).model, num_classes=3)
    batch = make_training_batch(Case(height=HEIGHT, width=WIDTH))
    variables = [*detector.backbone.trainable_variables, *detector.fpn.trainable_variables]

    def step(batch):
        with tf.GradientTape() as tape:
            pyramid = detector.extract_features(batch, training=True)
            total = tf.add_n([tf.reduce_sum(features**2) for features in pyramid.values()])
        return tape.gradient(total, variables)

    traced = 0
    for op in needed_operations(compile_graph(step, batch).graph):
        if op.type in ("Conv2DBackpropInput", "Conv2DBackpropFilter"):
            upstream = op.inputs[2].shape
            kernel = op.inputs[1].shape if op.type == "Conv2DBackpropInput" else op.outputs[0].shape
            traced += int(np.prod(upstream[1:3])) * int(np.prod(kernel))
    features = compile_graph(lambda batch: detector.extract_features(batch, training=True), batch)
    assert gradient_multiply_adds(features, detector.trainable_variables) == traced > 0


def test_the_published_network_needs_what_arithmetic_by_hand_says():
    config = load_config(ROOT / "configs" / "mmdetection_double_head_r50_fpn_1x_coco.yaml").model
    # Without the second stage, whose weights are many.
    small = replace(config, fc_head=replace(config.fc_head, channels=8))
    detector = assemble_detector(small, num_classes=2)
    graph = compile_graph(
        lambda features: detector.fpn(features),
        {f"C{n}": tf.TensorSpec([1, 1600 >> n + 1, 2688 >> n + 1, 64 << n]) for n in (2, 3, 4, 5)},
    )
    cells = 200 * 336 + 100 * 168 + 50 * 84 + 25 * 42
    laterals = 256 * (256 * 200 * 336 + 512 * 100 * 168 + 1024 * 50 * 84 + 2048 * 25 * 42)
    assert multiply_adds(graph) == laterals + 9 * 256 * 256 * cells
    batch = make_training_batch(Case(height=800, width=1344))
    parts = training_gflop(detector, batch, {"fc": np.zeros([0, 4]), "conv": np.zeros([0, 4])})
    cells_of_rpn = cells + 13 * 21
    per_cell = 9 * 256 * 256 + 15 * 256
    assert parts["rpn"] == pytest.approx(2e-9 * per_cell * (cells_of_rpn + 2 * 256), rel=1e-12)
    assert parts["heads"] == 0
    assert parts["features"] == pytest.approx(805.9011072, rel=1e-12)


def test_the_heads_of_a_training_step_are_three_products_and_twice_the_pooling(tiny_overrides):
    detector = assemble_detector(load_config(overrides=[*tiny_overrides]).model, num_classes=3)
    rois = {"fc": np.ones([5, 4], np.float32), "conv": np.ones([2, 4], np.float32)}
    parts = training_gflop(detector, make_training_batch(Case(height=64, width=64)), rois)
    conv = counted(detector.heads["conv_head"], [2, 7, 7, 16])
    fc = 5 * (49 * 16 * 16 + 16 * 16 + 16 * 4)
    assert detector.roi_align["fc"].sampling_ratio == 2
    pooling = (5 + 2) * 49 * 4 * 4 * 16
    assert parts["heads"] == pytest.approx(2e-9 * (3 * (fc + conv) + 2 * pooling), rel=1e-12)


def test_roi_align_counts_cells_of_a_roi_as_by_hand():
    roi = np.array([[4.0, 0.0, 116.0, 56.0]], np.float32)  # 112 x 56 pixels on P2: bins of 4 x 2 cells
    adaptive = RoIAlign(scale=1.0, sampling_ratio=0, geometry="continuous")
    assert roi_align_multiply_adds(adaptive, roi) == 49 * (4 + 1) * (2 + 1)
    fixed = RoIAlign(scale=1.0, sampling_ratio=2, geometry="continuous")
    assert roi_align_multiply_adds(fixed, roi) == 49 * 4 * 2 * 2


@pytest.mark.parametrize("geometry", ["continuous", "legacy"])
@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("sampling_ratio", [0, 3])
def test_roi_align_counts_equal_the_weights_that_the_operation_builds(monkeypatch, scale, sampling_ratio, geometry):
    random = np.random.default_rng(0)
    top_left = random.uniform(0, 200, (40, 2))
    rois = np.concatenate([top_left, top_left + random.uniform(5, 600, (40, 2))], axis=1).astype(np.float32)
    built = []
    multiply = roi_align_module._sparse_matmul
    monkeypatch.setattr(
        roi_align_module, "_sparse_matmul", lambda *inputs: built.append(int(inputs[1].shape[0])) or multiply(*inputs)
    )
    layer = RoIAlign(scale=scale, sampling_ratio=sampling_ratio, geometry=geometry)
    pyramid = {level: tf.zeros([1, *shape, 2]) for level, shape in PYRAMID_SIZES.items()}
    layer(pyramid, tf.constant(rois), tf.zeros([40], tf.int32), training=False)
    blank = np.zeros([1, 4], np.float32)  # which the operation puts behind the others
    assert built == [roi_align_multiply_adds(layer, np.concatenate([rois, blank]))]

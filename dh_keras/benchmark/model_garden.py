"""Faster R-CNN of the TensorFlow Model Garden, as the stock implementation to compare with.

Its package brings Keras 2, which is imported here only, inside the functions that need it.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from dh_keras.benchmark.case import Case, make_images
from dh_keras.benchmark.machine import gemm_gflops, median_ms, peak_memory_mb
from dh_keras.benchmark.training import make_training_batch

EXPERIMENT = "fasterrcnn_resnetfpn_coco"


def measure_inference(*, height: int, width: int, batch: int, repeats: int) -> dict:
    """See `measure_peer`: a graph with constant weights.

    The Model Garden pads images to multiples of 64 pixels, as its own serving does; that is part of the graph.
    """
    from official.vision.modeling.factory import build_maskrcnn

    images = tf.constant(make_images(height=height, width=width, batch=batch))
    config = _experiment().task.model
    padded = tf.TensorSpec([batch, *padded_size(config, images.shape), 3])
    graph = _frozen_graph(build_maskrcnn(input_specs=padded, model_config=config), config, images.shape)
    _, milliseconds = median_ms(graph, images, repeats=repeats)
    return {
        "name": f"model_garden {EXPERIMENT}, constant weights",
        "height": height,
        "width": width,
        "batch": batch,
        "precision": "float32",
        "proposals": config.roi_generator.test_num_proposals,
        "total_ms": milliseconds,
    }


def _experiment() -> Any:
    """The Model Garden's settings, with plain batch norms."""
    from official.core.exp_factory import get_exp_config
    from official.vision import configs  # noqa: F401, registers the experiments

    experiment = get_exp_config(EXPERIMENT)
    # The same numbers at inference, by a kernel that TensorFlow fuses into the convolution.
    experiment.task.model.norm_activation.use_sync_bn = False
    return experiment


def padded_size(config: Any, shape: tf.TensorShape) -> tuple[int, int]:
    """Height and width as multiples of the stride of its last level."""
    stride = 2**config.max_level
    return tuple(-(-side // stride) * stride for side in shape[1:3])


def _frozen_graph(model: Any, config: Any, shape: tf.TensorShape) -> Callable:
    """The model from uint8 pixels to detections, with its weights as constants of the graph."""
    from official.vision.ops.preprocess_ops import MEAN_RGB, STDDEV_RGB, normalize_image

    batch, height, width, _ = shape
    padded_height, padded_width = padded_size(config, shape)

    def predict(images: tf.Tensor) -> list[tf.Tensor]:
        pixels = normalize_image(tf.cast(images, tf.float32), offset=MEAN_RGB, scale=STDDEV_RGB)
        pixels = tf.image.pad_to_bounding_box(pixels, 0, 0, padded_height, padded_width)
        sizes = tf.constant([[float(height), float(width)]] * batch)
        outputs = model.call(pixels, sizes, training=False)
        return [outputs[name] for name in ("detection_boxes", "detection_scores", "detection_classes")]

    traced = tf.function(predict, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.uint8))
    return convert_variables_to_constants_v2(traced)


def measure_training(case: Case, *, repeats: int) -> dict:
    """See `measure_peer_training`; with plain batch norms."""
    from official.vision.tasks.maskrcnn import MaskRCNNTask

    before = gemm_gflops("float32")
    experiment = _experiment()
    task_config = experiment.task
    model_config = task_config.model
    model_config.roi_sampler.num_sampled_rois = case.rois
    padded = padded_size(model_config, [case.batch, case.height, case.width, 3])
    model_config.input_size = [*padded, 3]
    task_config.init_checkpoint = None
    task = MaskRCNNTask(task_config)
    model = task.build_model()
    inputs = peer_inputs(model_config, make_training_batch(case), padded)
    schedule = experiment.trainer.optimizer_config
    schedule.learning_rate.stepwise.values = [0.0, 0.0, 0.0]
    schedule.warmup.linear.warmup_learning_rate = 0.0
    optimizer = task.create_optimizer(schedule)
    step = tf.function(lambda images, labels: task.train_step((images, labels), model, optimizer), autograph=False)
    _, total_ms = median_ms(step, *inputs, repeats=repeats)
    peak = peak_memory_mb()
    gemm = max(before, gemm_gflops("float32"))
    return {"total_ms": total_ms, "gemm_gflops": gemm, "peak_memory_mb": peak}


def peer_inputs(model_config: Any, batch: dict[str, tf.Tensor], padded: tuple[int, int]) -> tuple[tf.Tensor, dict]:
    """Padded images float32 [B, H, W, 3] and labels as the Model Garden's parser makes them."""
    from official.vision.ops.anchor import RpnAnchorLabeler, build_anchor_generator
    from official.vision.ops.preprocess_ops import MEAN_RGB, STDDEV_RGB, normalize_image

    images = normalize_image(tf.cast(batch["images"], tf.float32), offset=MEAN_RGB, scale=STDDEV_RGB)
    images = tf.image.pad_to_bounding_box(images, 0, 0, *padded)
    anchor = model_config.anchor
    generator = build_anchor_generator(
        model_config.min_level, model_config.max_level, anchor.num_scales, anchor.aspect_ratios, anchor.anchor_size
    )
    anchors = generator(padded)
    sampled = [
        RpnAnchorLabeler().label_anchors(anchors, boxes, classes[:, None])
        for boxes, classes in zip(batch["gt_boxes"], batch["gt_classes"], strict=True)
    ]
    scores, boxes = (
        tf.nest.map_structure(lambda *levels: tf.stack(levels), *[targets[index] for targets in sampled])
        for index in (0, 1)
    )
    number = len(sampled)
    sizes = tf.cast(batch["image_sizes"], tf.float32)
    return images, {
        "image_info": tf.stack([sizes, sizes, tf.ones_like(sizes), tf.zeros_like(sizes)], axis=1),
        "anchor_boxes": tf.nest.map_structure(lambda level: tf.stack([level] * number), anchors),
        "gt_boxes": batch["gt_boxes"],
        "gt_classes": batch["gt_classes"] + 1,  # 0 is the background
        "rpn_score_targets": scores,
        "rpn_box_targets": boxes,
    }

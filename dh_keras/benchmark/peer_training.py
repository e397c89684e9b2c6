"""A training step of the Model Garden's Faster R-CNN, by its own task, on the images and boxes that ours is given."""

from typing import Any

import tensorflow as tf

from dh_keras.benchmark import PEERS
from dh_keras.benchmark.machine import gemm_gflops, median_ms, peak_rss_mb
from dh_keras.benchmark.peer import padded_size
from dh_keras.benchmark.training_workload import Case, make_training_batch


def measure_peer_training(name: str, case: Case, *, repeats: int) -> dict:
    """Time a peer's own training step with random weights, float32, plain batch norms and its own optimiser.

    The learning rate is zero, as in our step.

    Args:
        name: a key of `PEERS`.
        case: sizes, boxes and RoIs; the Model Garden pads images to multiples of 64 pixels.
        repeats: steps of which the median is taken.

    Returns:
        name, the case's fields, total_ms, gemm_gflops and peak_rss_mb.
    """
    from official.core.exp_factory import get_exp_config
    from official.vision import configs  # noqa: F401, registers the experiments
    from official.vision.tasks.maskrcnn import MaskRCNNTask

    before = gemm_gflops("float32")
    experiment = get_exp_config(PEERS[name])
    task_config = experiment.task
    model_config = task_config.model
    model_config.norm_activation.use_sync_bn = False
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
    peak = peak_rss_mb()
    gemm = max(before, gemm_gflops("float32"))
    return {"name": name, **case.to_dict(), "total_ms": total_ms, "gemm_gflops": gemm, "peak_rss_mb": peak}


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

"""Time and memory of one training step, whole and by parts, in this process.

The proposals of random weights seldom lie on a box, those of a trained network fill the share of foreground. Here the
proposals are computed as always, and then the best of them give their place to boxes near the true ones.
"""

from dataclasses import replace

import tensorflow as tf

from dh_keras.benchmark.case import CLASSES, Case, make_ground_truth, make_images
from dh_keras.benchmark.machine import gemm_gflops, median_ms, peak_memory_mb
from dh_keras.benchmark.operations import compile_graph, training_gflop
from dh_keras.config.schema import ModelConfig
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.ops.sampling import image_seeds
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.proposals import Proposals

STAGES = ("features", "rpn", "heads", "optimizer")
# A shift of the planted boxes as a share of a box's side: the intersection over union stays above 0.8.
SHIFT = 0.04


def make_training_batch(case: Case) -> dict[str, tf.Tensor]:
    """Seeded noise and boxes, see `make_ground_truth`; see `DoubleHeadRCNN` for the keys."""
    boxes, classes = make_ground_truth(case)
    return {
        "images": tf.constant(make_images(height=case.height, width=case.width, batch=case.batch)),
        "image_sizes": tf.constant([[case.height, case.width]] * case.batch),
        "gt_boxes": tf.constant(boxes),
        "gt_classes": tf.constant(classes),
        "gt_valid": tf.ones([case.batch, case.boxes], tf.bool),
        "image_ids": tf.range(case.batch, dtype=tf.int64),
    }


def build_trainee(config: ModelConfig, case: Case, batch: dict[str, tf.Tensor]) -> DoubleHeadRCNN:
    """A detector of `CLASSES` classes with seeded random weights, compiled; its foreground is full.

    The learning rate is zero: the update does all its work, and every step is the same.
    """
    config = replace(config, roi=replace(config.roi, batch_size=case.rois))
    detector = assemble_detector(config, num_classes=CLASSES, precision=case.precision, recompute_heads=case.recompute)
    detector.compile(optimizer=RecipeSGD(0.0, momentum=0.9, l2=1e-4), report="step")
    planted = near_boxes(batch["gt_boxes"], int(case.rois * config.roi.foreground_fraction))
    propose = detector.propose

    def propose_with_foreground(*inputs, training: bool) -> Proposals:
        return plant(propose(*inputs, training=training), planted)

    detector.propose = propose_with_foreground
    return detector


def near_boxes(gt_boxes: tf.Tensor, number: int) -> tf.Tensor:
    """Float32 [B, number, 4]: every box in turn, shifted a little along both axes."""
    boxes = tf.gather(gt_boxes, tf.range(number) % tf.shape(gt_boxes)[1], axis=1)
    size = boxes[..., 2:] - boxes[..., :2]
    shift = size * tf.random.stateless_uniform(tf.shape(size), seed=[0, 1], minval=-SHIFT, maxval=SHIFT)
    return boxes + tf.concat([shift, shift], axis=-1)


def plant(proposals: Proposals, boxes: tf.Tensor) -> Proposals:
    """Boxes float32 [B, n, 4] in the place of the best proposals."""
    number = tf.minimum(tf.shape(boxes)[1], tf.shape(proposals.boxes)[1])
    boxes = tf.concat([boxes[:, :number], proposals.boxes[:, number:]], axis=1)
    valid = tf.concat([tf.ones_like(proposals.valid[:, :number]), proposals.valid[:, number:]], axis=1)
    return Proposals(boxes, proposals.scores, valid)


def measure_training(config: ModelConfig, case: Case, *, repeats: int, stages: bool) -> dict:
    """Measure one case.

    Args:
        config: the detector.
        case: what to run.
        repeats: steps of which the median is taken.
        stages: whether the parts are timed too, after the memory was read.

    Returns:
        The case's fields and total_ms, gemm_gflops (float32, the better one of before and after), gflop,
        head_rois (of the batch, by kind of heads), peak_memory_mb, and stage_ms by the names of `STAGES`, empty without
        `stages`.
    """
    batch = make_training_batch(case)
    before = gemm_gflops("float32")
    detector = build_trainee(config, case, batch)
    step = compile_graph(lambda batch: detector.train_step(batch), batch)
    _, total_ms = median_ms(step, batch, repeats=repeats)
    peak = peak_memory_mb()
    rois = compile_graph(lambda batch: seen_rois(detector, batch), batch)(batch)
    rois = {kind: boxes.numpy() for kind, boxes in rois.items()}
    return {
        **case.to_dict(),
        "total_ms": total_ms,
        "gflop": sum(training_gflop(detector, batch, rois).values()),
        "head_rois": {kind: len(boxes) for kind, boxes in rois.items()},
        "peak_memory_mb": peak,
        "stage_ms": measure_stages(detector, batch, total_ms=total_ms, repeats=repeats) if stages else {},
        "gemm_gflops": max(before, gemm_gflops("float32")),
    }


def seen_rois(detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The RoIs float32 [R, 4] that each kind of heads gets in a training step."""
    run_heads, seen = detector.run_heads, {}

    def watched(pyramid, rois, image_index, *, training, kinds):
        seen[kinds[0]] = rois
        return run_heads(pyramid, rois, image_index, training=training, kinds=kinds)

    detector.run_heads = watched
    try:
        detector.compute_losses(batch, training=True)
    finally:
        detector.run_heads = run_heads
    return seen


def measure_stages(
    detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor], *, total_ms: float, repeats: int
) -> dict[str, float]:
    """Milliseconds of the parts, forward and backward.

    "features" (backbone and FPN), "rpn" (predictions, targets, losses, proposals) and "optimizer" are graphs of their
    own; "heads" is what is left of the step: RoI targets, RoIAlign, heads and their losses.
    """
    pyramid = compile_graph(lambda batch: detector.extract_features(batch, training=True), batch)(batch)
    trainable = [*detector.backbone.trainable_variables, *detector.fpn.trainable_variables]

    def features(batch, upstream):
        with tf.GradientTape() as tape:
            outputs = list(detector.extract_features(batch, training=True).values())
        return tape.gradient(outputs, [v.value for v in trainable], output_gradients=upstream)

    def rpn(batch, pyramid):
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            logits, deltas = detector.rpn_head(pyramid)
            anchors = detector.anchors(pyramid)
            losses = detector.rpn_losses(pyramid, anchors, batch, image_seeds(0, 0, batch["image_ids"]))
            proposals = detector.propose(logits, deltas, anchors, batch["image_sizes"], training=True)
        weights = [v.value for v in detector.rpn_head.trainable_variables]
        return tape.gradient(tf.add_n(list(losses.values())), [pyramid, weights]), proposals

    def optimizer():
        variables = detector.trainable_variables
        detector.optimizer.apply_gradients((tf.ones_like(v.value), v) for v in variables)

    upstream = list(pyramid.values())
    times = {
        "features": median_ms(compile_graph(features, batch, upstream), batch, upstream, repeats=repeats)[1],
        "rpn": median_ms(compile_graph(rpn, batch, pyramid), batch, pyramid, repeats=repeats)[1],
        "optimizer": median_ms(compile_graph(optimizer), repeats=repeats)[1],
    }
    times["heads"] = total_ms - sum(times.values())
    return {stage: times[stage] for stage in STAGES}

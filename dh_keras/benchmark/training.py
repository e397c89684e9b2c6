"""Time and memory of one training step, whole and by parts, in this process."""

import tensorflow as tf

from dh_keras.benchmark.machine import gemm_gflops, median_ms, peak_rss_mb
from dh_keras.benchmark.operations import compile_graph, training_gflop
from dh_keras.benchmark.training_workload import Case, build_trainee, make_training_batch
from dh_keras.config.schema import ModelConfig
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.ops.sampling import image_seeds

STAGES = ("features", "rpn", "heads", "optimizer")


def measure_training(config: ModelConfig, case: Case, *, repeats: int, stages: bool) -> dict:
    """Measure one case.

    Args:
        config: the detector.
        case: what to run.
        repeats: steps of which the median is taken.
        stages: whether the parts are timed too, after the memory was read.

    Returns:
        The case's fields and total_ms, gemm_gflops (float32, the better one of before and after), gflop,
        head_rois (of the batch, by kind of heads), peak_rss_mb, and stage_ms by the names of `STAGES`, empty without
        `stages`.
    """
    batch = make_training_batch(case)
    before = gemm_gflops("float32")
    detector = build_trainee(config, case, batch)
    step = compile_graph(lambda batch: detector.train_step(batch), batch)
    _, total_ms = median_ms(step, batch, repeats=repeats)
    peak = peak_rss_mb()
    rois = compile_graph(lambda batch: seen_rois(detector, batch), batch)(batch)
    rois = {kind: boxes.numpy() for kind, boxes in rois.items()}
    return {
        **case.to_dict(),
        "total_ms": total_ms,
        "gflop": sum(training_gflop(detector, batch, rois).values()),
        "head_rois": {kind: len(boxes) for kind, boxes in rois.items()},
        "peak_rss_mb": peak,
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

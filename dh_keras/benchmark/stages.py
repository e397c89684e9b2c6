"""Time and necessary operations of each stage of inference, and of the whole, on real inputs.

Every stage is a graph of its own that is fed with what the stage before it put out. The whole is one graph, in which
TensorFlow may overlap stages, so the stages' times need not add up to it.

Letters: R RoIs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from dh_keras.benchmark.machine import median_ms
from dh_keras.benchmark.operations import compile_graph, multiply_adds, roi_align_multiply_adds
from dh_keras.modeling.detections import class_probs, surviving_rois
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.ops.roi_align import pooling_order

STAGES = ("backbone", "fpn", "rpn", "proposals", "roi_align", "fc_head", "conv_head", "detections")
COUNTED = ("backbone", "fpn", "rpn", "fc_head", "conv_head")


@dataclass
class Measurement:
    """Times of one detector on one batch.

    Args:
        stages: "ms" (milliseconds) and "gflop" (billions of necessary floating-point operations) by the names of
            `STAGES`; 0 for a head that the variant does not have.
        total_ms: milliseconds of the whole graph, from uint8 images of the network's size to detections.
        rois: float32 [R, 4] of all images by kind of head, pixels: what each kind of heads sees.
        survivors: RoIs of the whole graph with a class score above the threshold.
    """

    stages: dict[str, dict[str, float]] = field(
        default_factory=lambda: {name: {"ms": 0.0, "gflop": 0.0} for name in STAGES}
    )
    total_ms: float = 0.0
    rois: dict[str, np.ndarray] = field(default_factory=dict)
    survivors: int = 0


@contextmanager
def score_threshold(detector: DoubleHeadRCNN, threshold: float) -> Iterator[None]:
    """Trace with this score threshold, and put the detector's own back."""
    previous, detector.score_threshold = detector.score_threshold, threshold
    try:
        yield
    finally:
        detector.score_threshold = previous


def best_scores(detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor]) -> np.ndarray:
    """Highest class probability of each RoI, float32 [R], before any is left out."""
    kinds = ("fc",) if detector.variant.scores_before_boxes else ("fc", "conv")

    def score(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        pyramid = detector.extract_features(batch, training=False)
        _, rois, image_index = detector.propose_rois(pyramid, batch["image_sizes"], training=False)
        outputs = detector.run_heads(pyramid, rois, image_index, training=False, kinds=kinds)
        return tf.reduce_max(class_probs(outputs, detector.variant.score_from), axis=1)

    return compile_graph(score, batch)(batch).numpy()


def measure(detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor], *, threshold: float, repeats: int) -> Measurement:
    """Time the stages and the whole.

    Args:
        detector: a built detector.
        batch: images uint8 [B, H, W, 3] of the network's size and image_sizes int32 [B, 2].
        threshold: score threshold, which sets how many RoIs survive.
        repeats: calls of which the median is taken.
    """
    measurement = Measurement()
    with score_threshold(detector, threshold):
        stages = _Stages(detector, measurement, repeats)
        pyramid, rois, image_index = stages.propose(batch)
        stages.detect(pyramid, rois, image_index, batch["image_sizes"])
        measurement.total_ms, measurement.survivors = _measure_total(detector, batch, repeats)
    return measurement


def _measure_total(detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor], repeats: int) -> tuple[float, int]:
    """Milliseconds of the whole graph, and how many RoIs survived in it."""

    def predict(batch: dict[str, tf.Tensor]) -> tuple:
        outputs = detector(batch, training=False)
        probs = class_probs(outputs, detector.variant.score_from)
        survivors = tf.size(surviving_rois(probs, score_threshold=detector.score_threshold))
        return detector.detect(outputs, batch["image_sizes"]), survivors

    (_, survivors), milliseconds = median_ms(compile_graph(predict, batch), batch, repeats=repeats)
    return milliseconds, int(survivors)


class _Stages:
    """Runs stages one after the other and adds their times to a measurement."""

    def __init__(self, detector: DoubleHeadRCNN, measurement: Measurement, repeats: int):
        self.detector = detector
        self.measurement = measurement
        self.repeats = repeats

    def run(self, stage: str, function: Callable, *inputs: Any) -> Any:
        graph = compile_graph(function, *inputs)
        outputs, milliseconds = median_ms(graph, *inputs, repeats=self.repeats)
        self.measurement.stages[stage]["ms"] += milliseconds
        if stage in COUNTED and 0 not in tf.nest.flatten(inputs)[0].shape:  # for no RoI the conv-head takes a blank one
            self.measurement.stages[stage]["gflop"] += 2e-9 * multiply_adds(graph)
        return outputs

    def propose(self, batch: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """First stage: the pyramid, rois float32 [R, 4] and image_index int64 [R]."""
        detector = self.detector

        def backbone(images: tf.Tensor, image_sizes: tf.Tensor) -> dict[str, tf.Tensor]:
            return detector.backbone(detector.normalization(images, image_sizes), training=False)

        def proposals(objectness_logits, anchor_deltas, pyramid, image_sizes) -> tuple[tf.Tensor, tf.Tensor]:
            anchors = detector.anchors(pyramid)
            found = detector.propose(objectness_logits, anchor_deltas, anchors, image_sizes, training=False)
            rois, image_index = found.flat()
            order = pooling_order(rois, image_index)
            return (rois, image_index) if order is None else (tf.gather(rois, order), tf.gather(image_index, order))

        features = self.run("backbone", backbone, batch["images"], batch["image_sizes"])
        pyramid = self.run("fpn", lambda features: detector.fpn(features), features)
        logits, deltas = self.run("rpn", lambda pyramid: detector.rpn_head(pyramid), pyramid)
        return pyramid, *self.run("proposals", proposals, logits, deltas, pyramid, batch["image_sizes"])

    def detect(
        self, pyramid: dict[str, tf.Tensor], rois: tf.Tensor, image_index: tf.Tensor, image_sizes: tf.Tensor
    ) -> None:
        """Second stage; where the fc-head alone scores, the conv-head sees the survivors only, as in the model."""
        detector = self.detector
        outputs = {}
        for kind in sorted(detector.roi_align, reverse=True):  # "fc" before "conv"
            if kind == "conv" and detector.variant.scores_before_boxes:
                probs = class_probs(outputs, "fc")
                survivors = surviving_rois(probs, score_threshold=detector.score_threshold)
                rois, image_index = tf.gather(rois, survivors), tf.gather(image_index, survivors)
                outputs = {name: tf.gather(output, survivors) for name, output in outputs.items()}
            outputs |= self.run_heads(kind, pyramid, rois, image_index)
            self.measurement.rois[kind] = rois.numpy()
        outputs |= {"rois": rois, "image_index": image_index}
        self.run("detections", lambda outputs, sizes: detector.detect(outputs, sizes), outputs, image_sizes)

    def run_heads(
        self, kind: str, pyramid: dict[str, tf.Tensor], rois: tf.Tensor, image_index: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Pool for the heads of a kind and run them."""
        detector = self.detector

        def pool(pyramid, rois, image_index) -> tf.Tensor:
            return detector.roi_align[kind](pyramid, rois, image_index, training=False)

        def heads(features: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = {}
            for spec in detector.variant.heads:
                if spec.kind == kind:
                    outputs |= {f"{kind}_{name}": value for name, value in detector.heads[spec.name](features).items()}
            return outputs

        features = self.run("roi_align", pool, pyramid, rois, image_index)
        pooled = roi_align_multiply_adds(detector.roi_align[kind], rois.numpy()) * features.shape[-1]
        self.measurement.stages["roi_align"]["gflop"] += 2e-9 * pooled
        return self.run(f"{kind}_head", heads, features)

"""How the detector learns: losses of a batch, a training step, a test step, in one process or on many replicas.

Letters: B batch, G padded ground truth, R RoIs.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling import losses as loss_functions
from dh_keras.modeling.constants import LOSS_NAMES, LOSSES
from dh_keras.modeling.keras_hooks import BuiltModel
from dh_keras.modeling.ops.anchors import anchors_on_canvas
from dh_keras.modeling.ops.machine import for_gpu
from dh_keras.modeling.ops.sampling import image_seeds, max_foreground
from dh_keras.modeling.targets import RoITargets, anchor_targets, roi_targets

NON_FINITE = "non-finite"


class TrainingStep(BuiltModel):
    """The training half of `DoubleHeadRCNN`, which is the network and has the layers and settings that are used here.

    To train by other losses, subclass `DoubleHeadRCNN`, override `compute_losses`, and give each a weight.

    Args:
        loss_weights: weight of each loss, by its name.
        seed: of the sampling of anchors and RoIs.
    """

    def __init__(self, *, loss_weights: dict[str, float], seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.loss_weights = loss_weights
        self.seed = seed
        self.loss_metrics = {name: keras.metrics.Mean(name=name) for name in (*loss_weights, "total_loss")}

    def compute_losses(self, batch: dict[str, tf.Tensor], *, training: bool) -> dict[str, tf.Tensor]:
        """The six unweighted losses of a batch, float32 scalars; 0 for those that the variant does not have."""
        step = self.optimizer.iterations if training else 0
        anchor_seeds, roi_seeds = (image_seeds(self.seed, step, batch["image_ids"], draw=draw) for draw in range(2))
        pyramid = self.extract_features(batch, training=training)
        objectness_logits, anchor_deltas = self.rpn_head(pyramid)
        anchors = self.anchors(pyramid)
        losses = self.rpn_losses(pyramid, anchors, batch, anchor_seeds)
        proposals = self.propose(objectness_logits, anchor_deltas, anchors, batch["image_sizes"], training=True)
        targets = roi_targets(
            proposals.boxes,
            proposals.valid,
            batch["gt_boxes"],
            batch["gt_classes"],
            batch["gt_valid"],
            roi_seeds,
            num_classes=self.num_classes,
            foreground_iou=self.roi.foreground_iou,
            batch_size=self.roi.batch_size,
            foreground_fraction=self.roi.foreground_fraction,
        )
        normalizer = _mean_count_over_replicas(tf.ones_like(targets.is_foreground))
        for kind in self.roi_align:
            seen = self._seen_by(kind, targets, batch)
            outputs = self.run_heads(pyramid, seen.rois, seen.image_index, training=training, kinds=(kind,))
            losses |= self._head_losses(kind, outputs, seen, normalizer)
        return {name: losses.get(name, tf.constant(0.0)) for name in LOSS_NAMES}

    def rpn_losses(
        self,
        pyramid: dict[str, tf.Tensor],
        anchors: dict[str, tf.Tensor],
        batch: dict[str, tf.Tensor],
        seeds: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Losses of the first stage, at the anchors that the seeds int64 [B, 2] sample."""
        on_canvas = anchors_on_canvas(anchors, batch["image_sizes"])
        targets = anchor_targets(
            tf.concat(list(anchors.values()), axis=0),
            tf.concat(list(on_canvas.values()), axis=1),
            batch["gt_boxes"],
            batch["gt_valid"],
            batch["image_sizes"],
            seeds,
            positive_iou=self.rpn.positive_iou,
            negative_iou=self.rpn.negative_iou,
            low_quality_iou=self.rpn.low_quality_iou,
            low_quality_own_box=self.rpn.low_quality_own_box,
            ignore_border=self.rpn.ignore_border,
            batch_size=self.rpn.batch_size,
            positive_fraction=self.rpn.positive_fraction,
        )
        logits, deltas = self.rpn_head.predict_at(pyramid, targets.indices)
        normalizer = _mean_count_over_replicas(targets.valid)
        return {
            LOSSES["rpn_objectness"]: loss_functions.objectness_loss(
                logits, targets.is_foreground, targets.valid, normalizer
            ),
            LOSSES["rpn_box"]: loss_functions.box_loss(
                deltas, targets.box_targets, targets.is_foreground, normalizer, beta=self.rpn.box_loss_beta
            ),
        }

    @property
    def foreground_only(self) -> set[str]:
        """Kinds of heads that only place boxes, each RoI by itself: background RoIs do not change their loss."""
        heads = {kind: [spec for spec in self.variant.heads if spec.kind == kind] for kind in self.roi_align}
        return {
            kind
            for kind, specs in heads.items()
            if not any(spec.classes or self.heads[spec.name].mixes_rois for spec in specs)
        }

    def _seen_by(self, kind: str, targets: RoITargets, batch: dict[str, tf.Tensor]) -> RoITargets:
        """The RoIs that a kind of heads needs; with a GPU the conv-head's foreground is always as much as can be."""
        if kind not in self.foreground_only:
            return targets
        if kind != "conv" or not for_gpu():
            return targets.foreground()
        most = max_foreground(self.roi.batch_size, self.roi.foreground_fraction)
        return targets.foreground(rows=most * tf.shape(batch["image_sizes"])[0])

    def _head_losses(
        self, kind: str, outputs: dict[str, tf.Tensor], targets: RoITargets, normalizer: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        losses = {}
        if f"{kind}_class_logits" in outputs:
            losses[LOSSES[f"{kind}_class"]] = loss_functions.class_loss(
                outputs[f"{kind}_class_logits"], targets.class_targets, normalizer
            )
        if f"{kind}_box_deltas" in outputs:
            deltas = loss_functions.class_specific_deltas(outputs[f"{kind}_box_deltas"], targets.class_targets)
            losses[LOSSES[f"{kind}_box"]] = loss_functions.box_loss(
                deltas, targets.box_targets, targets.is_foreground, normalizer, beta=1.0
            )
        return losses

    def weighted_total(self, losses: dict[str, tf.Tensor]) -> tf.Tensor:
        """The number that is minimised (L2 decay is the optimiser's)."""
        return tf.add_n([self.loss_weights[name] * loss for name, loss in losses.items()])

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Forward, losses, gradients, update; returns the losses of this step."""
        with tf.control_dependencies([batch["image_ids"]]):
            batch_ready_at = tf.timestamp()  # what came before in this step was waiting for data
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            losses = self.compute_losses(batch, training=True)
            total = self.weighted_total(losses)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            objective = self.optimizer.scale_loss(total / replicas)
        gradients = tape.gradient(objective, variables)
        gradients = self._require_finite(gradients, losses, batch["image_ids"])
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = _spoil_where_any_overflows(gradients, self.optimizer)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return _for_reduction({**losses, "total_loss": total, "batch_ready_at": batch_ready_at})

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Losses with inference behaviour of every norm; returns their running means."""
        losses = self.compute_losses(batch, training=False)
        for name, loss in {**losses, "total_loss": self.weighted_total(losses)}.items():
            self.loss_metrics[name].update_state(loss)
        return _for_reduction({name: metric.result() for name, metric in self.loss_metrics.items()})

    def _require_finite(
        self, gradients: Sequence[tf.Tensor | None], losses: dict[str, tf.Tensor], image_ids: tf.Tensor
    ) -> list[tf.Tensor | None]:
        """Gradients that cannot be used unless losses and gradients are finite; the error names step, loss, images."""
        values = dict(losses)
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):  # which halves its scale instead
            values["gradient"] = tf.linalg.global_norm([g for g in gradients if g is not None])
        bad = [tf.where(tf.math.is_finite(value), "", f" {name}") for name, value in values.items()]
        message = tf.strings.join(
            [
                NON_FINITE,
                *bad,
                " at step ",
                tf.strings.as_string(self.optimizer.iterations + 1),
                ", image ids ",
                tf.strings.format("{}", image_ids, summarize=-1),
            ]
        )
        finite = tf.reduce_all([tf.math.is_finite(value) for value in values.values()])
        with tf.control_dependencies([tf.debugging.Assert(finite, [message], summarize=1)]):
            return [None if g is None else tf.identity(g) for g in gradients]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Mean losses of an evaluation, reset at its start."""
        return list(self.loss_metrics.values())


def _for_reduction(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Give logs the axis along which Keras reduces them over workers; elsewhere leave the scalars."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return {name: value[None] for name, value in logs.items()}
    return logs


def _spoil_where_any_overflows(
    gradients: Sequence[tf.Tensor | None], optimizer: keras.optimizers.LossScaleOptimizer
) -> Sequence[tf.Tensor | None]:
    """Gradients that are NaN on every replica when they are not finite on one.

    Keras' loss scaling looks at those of one replica, or of its own, before they are summed; so all decide the same.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradients
    overflows = tf.where(optimizer.check_finite(gradients), 0.0, 1.0)
    spoiled = tf.where(context.all_reduce(tf.distribute.ReduceOp.SUM, overflows) > 0.0, float("nan"), 0.0)
    return [None if g is None else g + tf.cast(spoiled, g.dtype) for g in gradients]


def _mean_count_over_replicas(counted: tf.Tensor) -> tf.Tensor:
    """Number of True entries (or of entries, for ones) per replica, averaged over replicas, at least 1; float32."""
    count = tf.reduce_sum(tf.cast(counted, tf.float32))
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        count = context.all_reduce(tf.distribute.ReduceOp.MEAN, count)
    return tf.maximum(count, 1.0)

"""How the detector learns: losses of a batch, a training step, a test step, in one process or on many replicas.

Letters: B batch, G padded ground truth, R RoIs.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling import losses as loss_functions
from dh_keras.modeling.constants import LOSS_NAMES, LOSSES
from dh_keras.modeling.keras_hooks import TakesSummedGradients
from dh_keras.modeling.keras_model import KerasModel
from dh_keras.modeling.loss_means import LossMeans
from dh_keras.modeling.ops.anchors import anchors_on_canvas
from dh_keras.modeling.ops.machine import for_gpu
from dh_keras.modeling.ops.sampling import image_seeds, max_foreground
from dh_keras.modeling.targets import RoITargets, anchor_targets, roi_targets

# In what a step returns: the norm of the gradients of the step before it, which is known by then.
PREVIOUS_NORM = "previous_gradient_norm"


class TrainingStep(KerasModel):
    """The training half of `DoubleHeadRCNN`, which is the network and has the layers and settings that are used here.

    To train by other losses, subclass `DoubleHeadRCNN` and override `compute_losses`.

    Args:
        loss_weights: weight of each loss, by its name; one that is not there weighs 1.
        seed: of the sampling of anchors and RoIs.
    """

    def __init__(self, *, loss_weights: dict[str, float], seed: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.loss_weights = loss_weights
        self.seed = seed
        self.loss_means = LossMeans(loss_weights)

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
        return tf.add_n([self.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()])

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Forward, losses, gradients, update.

        When a loss or a gradient is not finite, on any replica, `RecipeSGD` changes no weight, slot or step counter; an
        optimizer of Keras takes zeros in the place of the gradients. Nothing waits to find out: `gradient_norm` says so
        afterwards, and so does what the next step returns as `PREVIOUS_NORM`.

        Args:
            data: see `training_batch`.

        Returns:
            As `compile` was told, the means of the losses over the epoch so far, with "loss", their weighted total; or
            the losses of this step alone, with "total_loss", `PREVIOUS_NORM` and, if timed, "data_wait" in seconds.
        """
        batch, logs = self.training_batch(data), {}
        if self.report == "step" and self.timed:
            begun = tf.timestamp()  # depends on nothing, so it is read before the batch is taken from the queue
            with tf.control_dependencies([batch["image_ids"]]):
                logs["data_wait"] = tf.timestamp() - begun
        gradients, losses = self._gradients_and_losses(batch)
        gradients = _sum_over_replicas(gradients)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm)
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)  # it halves its scale instead
        self._apply(gradients, tf.constant(True) if scaled else finite)
        logs |= {**losses, PREVIOUS_NORM: tf.identity(self.gradient_norm)}
        if not scaled:
            self.gradient_norm.assign(norm)
            self.optimizer.iterations.assign_sub(tf.where(finite, tf.constant(0, tf.int64), 1))
        return _for_reduction(logs) if self.report == "step" else self._count_losses(losses, batch)

    def _apply(self, gradients: Sequence[tf.Tensor | None], usable: tf.Tensor) -> None:
        """Update the weights by gradients that are the same on every replica, or that are not usable."""
        optimizer = self.optimizer
        if not isinstance(getattr(optimizer, "inner_optimizer", optimizer), TakesSummedGradients):
            share = 1.0 / tf.distribute.get_strategy().num_replicas_in_sync  # Keras is going to sum them
            gradients = [None if g is None else tf.where(usable, g * tf.cast(share, g.dtype), 0) for g in gradients]
        optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

    def _gradients_and_losses(self, batch: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor | None], dict[str, tf.Tensor]]:
        """Gradients of this replica's share of the objective, of all parts together; mean losses, and their total."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        gradients, losses = [], []
        for part in _equal_parts(batch, self.accumulate):
            # Begun only when the gradients of the one before are there, whose inner tensors are gone by then.
            with tf.control_dependencies([tf.group(*(g for g in gradients if g is not None))] if losses else []):
                part = {name: tf.identity(values) for name, values in part.items()}
            with tf.GradientTape() as tape:
                of_part = self.compute_losses(part, training=True)
                of_part["total_loss"] = self.weighted_total(of_part)
                # A gradient of what is not finite is not finite either.
                finite = tf.reduce_all([tf.math.is_finite(loss) for loss in of_part.values()])
                objective = of_part["total_loss"] / (replicas * self.accumulate) * tf.where(finite, 1.0, float("nan"))
                objective = self.optimizer.scale_loss(objective)
            found = tape.gradient(objective, self.trainable_variables)
            if losses:
                found = [None if new is None else old + new for old, new in zip(gradients, found, strict=True)]
            gradients = found
            losses.append(of_part)
        return gradients, {name: tf.add_n([one[name] for one in losses]) / self.accumulate for name in losses[0]}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Losses with inference behaviour of every norm; returns their means so far, as `train_step` does."""
        batch = self.training_batch(data)
        losses = self.compute_losses(batch, training=False)
        return self._count_losses({**losses, "total_loss": self.weighted_total(losses)}, batch)

    def _count_losses(self, losses: dict[str, tf.Tensor], batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Means so far, the total by the name that Keras' callbacks know."""
        named = {"loss" if name == "total_loss" else name: loss for name, loss in losses.items()}
        return _for_reduction(self.loss_means.update(named, tf.shape(batch["image_ids"])[0]))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The mean losses of an epoch or an evaluation, reset at its start."""
        return list(self.loss_means.metrics.values())


def _for_reduction(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Give logs the axis along which Keras reduces them over workers; elsewhere, and for one, leave the scalars."""
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and (
        len(tf.nest.flatten(strategy.cluster_resolver.cluster_spec().as_dict())) > 1
    ):
        return {name: value[None] for name, value in logs.items()}
    return logs


def _equal_parts(batch: dict[str, tf.Tensor], number: int) -> list[dict[str, tf.Tensor]]:
    if number == 1:
        return [batch]
    return [
        dict(zip(batch, values, strict=True))
        for values in zip(*(tf.split(values, number) for values in batch.values()), strict=True)
    ]


def _sum_over_replicas(gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Gradients that are the same on every replica, so that all decide the same about them."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(gradients)
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, [g for g in gradients if g is not None]))
    return [None if gradient is None else next(summed) for gradient in gradients]


def _mean_count_over_replicas(counted: tf.Tensor) -> tf.Tensor:
    """Number of True entries (or of entries, for ones) per replica, averaged over replicas, at least 1; float32."""
    count = tf.reduce_sum(tf.cast(counted, tf.float32))
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        count = context.all_reduce(tf.distribute.ReduceOp.MEAN, count)
    return tf.maximum(count, 1.0)

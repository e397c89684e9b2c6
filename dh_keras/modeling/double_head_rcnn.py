"""Double-Head R-CNN (paper, figure 1): the stages in order, a training step and a test step.

Letters: B batch, G padded ground truth, P proposals, R RoIs, K classes, H W C.
"""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.config.schema import RoIConfig, RPNConfig
from dh_keras.modeling import losses as loss_functions
from dh_keras.modeling.constants import LOSS_NAMES, SIZE_DIVISOR
from dh_keras.modeling.detections import Detections, class_probs, select_detections, surviving_rois
from dh_keras.modeling.ops.sampling import image_seeds
from dh_keras.modeling.proposals import Proposals, generate_proposals, pyramid_anchors
from dh_keras.modeling.targets import RoITargets, anchor_targets, roi_targets
from dh_keras.modeling.variants import VARIANTS

NON_FINITE = "non-finite"


class DoubleHeadRCNN(keras.Model):
    """The detector in any of the paper's variants. `builder.assemble_detector` makes one from a config.

    Batches are dicts: images uint8 [B, H, W, 3] RGB, padded at the bottom and right; image_sizes int32 [B, 2] (height,
    width) without padding; and for training gt_boxes float32 [B, G, 4] in pixels of the resized image, gt_classes
    int32 [B, G], gt_valid bool [B, G] and image_ids int64 [B].

    Args:
        variant: a key of `VARIANTS`.
        num_classes: K, without background.
        geometry: "continuous" or "legacy".
        normalization: `PixelNormalization`.
        backbone: images to C2..C5.
        fpn: C2..C5 to P2..P6.
        rpn_head: P2..P6 to objectness and deltas.
        roi_align: `RoIAlign` for each kind of head that exists, "fc" and "conv".
        heads: the layers of the variant's heads, by name.
        rpn: anchor, assignment and proposal settings.
        roi: RoI assignment settings.
        loss_weights: weight of each second-stage loss, keys fc_class, fc_box, conv_class, conv_box.
        score_threshold, nms_iou, max_detections: see `ModelConfig`.
        seed: of the sampling of anchors and RoIs.
        recompute_heads: in training, compute the heads again for the gradients instead of keeping what is inside them.
    """

    def __init__(
        self,
        *,
        variant: str,
        num_classes: int,
        geometry: str,
        normalization: keras.layers.Layer,
        backbone: keras.layers.Layer,
        fpn: keras.layers.Layer,
        rpn_head: keras.layers.Layer,
        roi_align: dict[str, keras.layers.Layer],
        heads: dict[str, keras.layers.Layer],
        rpn: RPNConfig,
        roi: RoIConfig,
        loss_weights: dict[str, float],
        score_threshold: float,
        nms_iou: float,
        max_detections: int,
        seed: int = 0,
        recompute_heads: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.variant_name = variant
        self.variant = VARIANTS[variant]
        self.num_classes = num_classes
        self.geometry = geometry
        self.normalization = normalization
        self.backbone = backbone
        self.fpn = fpn
        self.rpn_head = rpn_head
        self.roi_align = roi_align
        self.heads = heads
        self.rpn = rpn
        self.roi = roi
        self.loss_weights = {"rpn_objectness_loss": 1.0, "rpn_box_loss": 1.0}
        self.loss_weights |= {f"{name}_loss": weight for name, weight in loss_weights.items()}
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.seed = seed
        self.recompute_heads = recompute_heads
        self.loss_metrics = {name: keras.metrics.Mean(name=name) for name in (*LOSS_NAMES, "total_loss")}

    def with_layers(self, **layers: Any) -> "DoubleHeadRCNN":
        """A built detector with the settings of this one and other layers, named as in the constructor."""
        detector = DoubleHeadRCNN(
            variant=self.variant_name,
            num_classes=self.num_classes,
            geometry=self.geometry,
            rpn=self.rpn,
            roi=self.roi,
            loss_weights={
                name.removesuffix("_loss"): weight
                for name, weight in self.loss_weights.items()
                if not name.startswith("rpn_")
            },
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            max_detections=self.max_detections,
            seed=self.seed,
            recompute_heads=self.recompute_heads,
            name=self.name,
            **layers,
        )
        detector.create_variables()
        return detector

    def create_variables(self) -> None:
        """Build every layer by detecting in a blank image."""
        side = 2 * SIZE_DIVISOR
        self({"images": tf.zeros([1, side, side, 3], tf.uint8), "image_sizes": tf.constant([[side, side]])})

    # ---------------------------------------------------------------------------------------------- forward

    def extract_features(self, batch: dict[str, tf.Tensor], *, training: bool) -> dict[str, tf.Tensor]:
        """P2..P6 of a batch, float [B, H, W, C] each."""
        images = self.normalization(batch["images"], batch["image_sizes"])
        return self.fpn(self.backbone(images, training=training), training=training)

    def anchors(self, pyramid: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Anchors of each level, float32 [N, 4] in pixels of the resized image."""
        return pyramid_anchors(
            pyramid, sizes=self.rpn.anchor_sizes, ratios=self.rpn.anchor_ratios, geometry=self.geometry
        )

    def propose(
        self,
        objectness_logits: dict[str, tf.Tensor],
        anchor_deltas: dict[str, tf.Tensor],
        anchors: dict[str, tf.Tensor],
        image_sizes: tf.Tensor,
        *,
        training: bool,
    ) -> Proposals:
        """Proposals with the numbers of training or of inference."""
        return generate_proposals(
            objectness_logits,
            anchor_deltas,
            anchors,
            image_sizes,
            pre_nms=self.rpn.pre_nms_train if training else self.rpn.pre_nms_test,
            post_nms=self.rpn.post_nms_train if training else self.rpn.post_nms_test,
            nms_iou=self.rpn.nms_iou,
            geometry=self.geometry,
        )

    def run_heads(
        self,
        pyramid: dict[str, tf.Tensor],
        rois: tf.Tensor,
        image_index: tf.Tensor,
        *,
        training: bool,
        kinds: Sequence[str] = ("fc", "conv"),
    ) -> dict[str, tf.Tensor]:
        """Second stage.

        Args:
            pyramid: from `extract_features`.
            rois: float32 [R, 4], pixels of the resized image.
            image_index: int32 [R].
            training: whether unfrozen batch norms use batch statistics.
            kinds: the kinds of heads to run.

        Returns:
            Those of fc_class_logits, conv_class_logits float32 [R, K + 1] and fc_box_deltas, conv_box_deltas float32
            [R, K, 4] that the variant's heads of these kinds have.
        """
        specs = [spec for spec in self.variant.heads if spec.kind in kinds]
        roi_features = {
            kind: self.roi_align[kind](pyramid, rois, image_index, training=training)
            for kind in dict.fromkeys(spec.kind for spec in specs)
        }
        outputs = {}
        for spec in specs:
            head = functools.partial(self.heads[spec.name], training=training)
            if training and self.recompute_heads:
                head = tf.recompute_grad(head)
            predictions = head(roi_features[spec.kind])
            outputs |= {f"{spec.kind}_{name}": prediction for name, prediction in predictions.items()}
        return outputs

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> dict[str, Any]:
        """Everything up to the head outputs, for images without ground truth.

        Args:
            inputs: "images" and "image_sizes", see the class.
            training: whether unfrozen batch norms use batch statistics.

        Returns:
            "proposals" (a `Proposals`), "rois" float32 [R, 4] (the valid proposals, flat), "image_index" int32 [R], and
            the outputs of `run_heads`. Where the fc-head scores and the conv-head only places boxes, R counts just the
            RoIs that some class scores above the threshold: the others cannot become detections.
        """
        image_sizes = inputs["image_sizes"]
        pyramid = self.extract_features(inputs, training=training)
        objectness_logits, anchor_deltas = self.rpn_head(pyramid)
        proposals = self.propose(
            objectness_logits, anchor_deltas, self.anchors(pyramid), image_sizes, training=training
        )
        rois = tf.boolean_mask(proposals.boxes, proposals.valid)
        image_index = tf.cast(tf.where(proposals.valid)[:, 0], tf.int32)
        if self.variant.scores_before_boxes and not training:
            outputs = self.run_heads(pyramid, rois, image_index, training=False, kinds=("fc",))
            survivors = surviving_rois(class_probs(outputs, "fc"), score_threshold=self.score_threshold)
            outputs = {name: tf.gather(output, survivors) for name, output in outputs.items()}
            rois, image_index = tf.gather(rois, survivors), tf.gather(image_index, survivors)
            outputs |= self.run_heads(pyramid, rois, image_index, training=False, kinds=("conv",))
        else:
            outputs = self.run_heads(pyramid, rois, image_index, training=training)
        return {"proposals": proposals, "rois": rois, "image_index": image_index, **outputs}

    def detect(
        self,
        outputs: dict[str, Any],
        image_sizes: tf.Tensor,
        *,
        score_from: str | None = None,
        boxes_from: str | None = None,
    ) -> Detections:
        """Detections in pixels of the resized image.

        Args:
            outputs: of `call`.
            image_sizes: int32 [B, 2] without padding.
            score_from: "fc", "conv" or "fused"; None takes the variant's.
            boxes_from: "fc" or "conv"; None takes the variant's.
        """
        return select_detections(
            outputs["rois"],
            outputs["image_index"],
            class_probs(outputs, score_from or self.variant.score_from),
            outputs[f"{boxes_from or self.variant.boxes_from}_box_deltas"],
            image_sizes,
            score_threshold=self.score_threshold,
            nms_iou=self.nms_iou,
            max_detections=self.max_detections,
            geometry=self.geometry,
        )

    # ----------------------------------------------------------------------------------------------- losses

    def compute_losses(self, batch: dict[str, tf.Tensor], *, training: bool) -> dict[str, tf.Tensor]:
        """The six unweighted losses of a batch, float32 scalars; 0 for those that the variant does not have."""
        step = self.optimizer.iterations if training else 0
        seeds = image_seeds(self.seed, step, batch["image_ids"])
        pyramid = self.extract_features(batch, training=training)
        objectness_logits, anchor_deltas = self.rpn_head(pyramid)
        anchors = self.anchors(pyramid)
        losses = self._rpn_losses(pyramid, anchors, batch, seeds)
        proposals = self.propose(objectness_logits, anchor_deltas, anchors, batch["image_sizes"], training=True)
        targets = roi_targets(
            proposals.boxes,
            proposals.valid,
            batch["gt_boxes"],
            batch["gt_classes"],
            batch["gt_valid"],
            seeds + 1,
            num_classes=self.num_classes,
            foreground_iou=self.roi.foreground_iou,
            batch_size=self.roi.batch_size,
            foreground_fraction=self.roi.foreground_fraction,
        )
        normalizer = _mean_count_over_replicas(tf.ones_like(targets.is_foreground))
        for kind in self.roi_align:
            seen = targets.foreground() if kind in self.foreground_only else targets
            outputs = self.run_heads(pyramid, seen.rois, seen.image_index, training=training, kinds=(kind,))
            losses |= self._head_losses(kind, outputs, seen, normalizer)
        return {name: losses.get(name, tf.constant(0.0)) for name in LOSS_NAMES}

    def _rpn_losses(
        self,
        pyramid: dict[str, tf.Tensor],
        anchors: dict[str, tf.Tensor],
        batch: dict[str, tf.Tensor],
        seeds: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        targets = anchor_targets(
            tf.concat(list(anchors.values()), axis=0),
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
            "rpn_objectness_loss": loss_functions.objectness_loss(
                logits, targets.is_foreground, targets.valid, normalizer
            ),
            "rpn_box_loss": loss_functions.box_loss(
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

    def _head_losses(
        self, kind: str, outputs: dict[str, tf.Tensor], targets: RoITargets, normalizer: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        losses = {}
        if f"{kind}_class_logits" in outputs:
            losses[f"{kind}_class_loss"] = loss_functions.class_loss(
                outputs[f"{kind}_class_logits"], targets.class_targets, normalizer
            )
        if f"{kind}_box_deltas" in outputs:
            deltas = loss_functions.class_specific_deltas(outputs[f"{kind}_box_deltas"], targets.class_targets)
            losses[f"{kind}_box_loss"] = loss_functions.box_loss(
                deltas, targets.box_targets, targets.is_foreground, normalizer, beta=1.0
            )
        return losses

    def weighted_total(self, losses: dict[str, tf.Tensor]) -> tf.Tensor:
        """The number that is minimised (L2 decay is the optimiser's)."""
        return tf.add_n([self.loss_weights[name] * loss for name, loss in losses.items()])

    # ------------------------------------------------------------------------------------------------ steps

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

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Skip Keras' symbolic build: the model is built, and averaging a batch over replicas fails for bools."""


def _for_reduction(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Give logs the axis along which Keras reduces them over workers; elsewhere leave the scalars."""
    if isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return {name: value[None] for name, value in logs.items()}
    return logs


def _mean_count_over_replicas(counted: tf.Tensor) -> tf.Tensor:
    """Number of True entries (or of entries, for ones) per replica, averaged over replicas, at least 1; float32."""
    count = tf.reduce_sum(tf.cast(counted, tf.float32))
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        count = context.all_reduce(tf.distribute.ReduceOp.MEAN, count)
    return tf.maximum(count, 1.0)

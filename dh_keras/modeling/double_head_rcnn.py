"""Double-Head R-CNN (paper, figure 1): the network, from pixels to detections. How it learns is in `training_step.py`.

Letters: B batch, G padded ground truth, P proposals, R RoIs, K classes, H W C.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.config.schema import RoIConfig, RPNConfig
from dh_keras.modeling.constants import PYRAMID_LEVELS
from dh_keras.modeling.detections import Detections, class_probs, select_detections, surviving_rois
from dh_keras.modeling.keras_hooks import own_random_numbers
from dh_keras.modeling.layers.recomputation import recomputed
from dh_keras.modeling.ops.roi_align import pooling_order
from dh_keras.modeling.precision import layer_precision
from dh_keras.modeling.proposals import Proposals, generate_proposals, pyramid_anchors
from dh_keras.modeling.training_step import TrainingStep
from dh_keras.modeling.user_data import image_batch
from dh_keras.modeling.variants import Variant, make_variant

IMAGES = (None, None, None, 3)


@keras.saving.register_keras_serializable(package="dh_keras")
class DoubleHeadRCNN(TrainingStep):
    """The detector in any of the paper's variants. `builder.assemble_detector` makes one from a config.

    Every argument is an attribute of the same name.

    Batches are dicts: images uint8 [B, H, W, 3] RGB, padded at the bottom and right; image_sizes int32 [B, 2] (height,
    width) without padding; and for training gt_boxes float32 [B, G, 4] in pixels of the resized image, gt_classes
    int32 [B, G], gt_valid bool [B, G] and image_ids int64 [B]. What else `fit` and `predict` take, see `KerasModel`.

    Args:
        variant: one of `VARIANTS`.
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
        loss_weights: weight of each loss, by its name.
        score_threshold: detections must score more than this.
        nms_iou: a detection that overlaps a better one of its class more than this is dropped.
        max_detections: best detections kept per image.
        seed: of the sampling of anchors and RoIs.
        recompute_heads: in training, compute the heads again for the gradients instead of keeping what is inside them.
    """

    def __init__(
        self,
        *,
        variant: Variant,
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
        super().__init__(loss_weights=loss_weights, seed=seed, **kwargs)
        self.variant = variant
        self.num_classes = num_classes
        self.geometry = geometry
        self.normalization = normalization
        self.backbone = backbone
        self.fpn = fpn
        self.rpn_head = rpn_head
        self.roi_align = roi_align
        self.heads = {spec.name: heads[spec.name] for spec in variant.heads}
        self.rpn = rpn
        self.roi = roi
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.recompute_heads = recompute_heads

    def with_layers(self, **layers: Any) -> "DoubleHeadRCNN":
        """A built detector with the settings of this one and other layers, named as in the constructor.

        The others are shared with this one. Those that do not fit any more, because what comes before them has another
        shape, are made anew with weights of their own: the feature pyramid, the RPN head, the heads.
        """
        arguments = {name: getattr(self, name) for name in ("name", *_argument_names())} | layers
        wider = arguments["fpn"].channels != self.fpn.channels
        before = self.roi_align
        resized = any(layer.output_size != before[kind].output_size for kind, layer in arguments["roi_align"].items())
        deeper = _pyramid_shapes(arguments["backbone"]) != _pyramid_shapes(self.backbone)
        misfits = {"fpn": deeper, "rpn_head": wider, "heads": wider or resized}
        afresh = [name for name, misfit in misfits.items() if misfit and name not in layers]
        if not afresh:
            return self._assembled(arguments)
        with layer_precision(self.dtype_policy), own_random_numbers(self.seed):
            config = self.get_config()
            made = keras.saving.deserialize_keras_object({name: config[name] for name in afresh})
            return self._assembled(arguments | made)

    @classmethod
    def _assembled(cls, arguments: dict[str, Any]) -> "DoubleHeadRCNN":
        detector = cls(**arguments)
        detector.build()
        return detector

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes a detector with new weights from; ready for JSON."""
        config = {name: getattr(self, name) for name in _argument_names()}
        config |= {name: dataclasses.asdict(config[name]) for name in _SETTINGS}
        config = keras.saving.serialize_keras_object(config)
        for layer in (*(config[name] for name in _LAYERS), *config["roi_align"].values(), *config["heads"].values()):
            layer.pop("build_config", None)  # they are built inside the detector, after which their weights are named
        return super().get_config() | config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DoubleHeadRCNN":
        """A built detector, as a model that Keras has saved becomes one again."""
        with layer_precision(keras.saving.deserialize_keras_object(config["dtype"])):
            config = keras.saving.deserialize_keras_object(config)
            settings = {name: make(**config[name]) for name, make in _SETTINGS.items()}
            return cls._assembled(config | settings)

    def build(self, input_shape: None = None) -> None:
        """Create the weights of the layers that have none yet, whatever the size of the images; nothing is computed."""
        level = (None, None, None, self.fpn.channels)
        inputs = [
            (self.backbone, IMAGES),
            (self.fpn, _pyramid_shapes(self.backbone)),
            (self.rpn_head, dict.fromkeys(PYRAMID_LEVELS, level)),
        ]
        for spec in self.variant.heads:
            inputs.append((self.heads[spec.name], (None, *self.roi_align[spec.kind].output_size, self.fpn.channels)))
        for layer, shape in inputs:
            if not layer.built:
                layer.build(shape)

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

    def propose_rois(
        self, pyramid: dict[str, tf.Tensor], image_sizes: tf.Tensor, *, training: bool
    ) -> tuple[Proposals, tf.Tensor, tf.Tensor]:
        """First stage: proposals, and the valid ones of all images, flat, as rois [R, 4] and image_index [R]."""
        objectness_logits, anchor_deltas = self.rpn_head(pyramid)
        proposals = self.propose(
            objectness_logits, anchor_deltas, self.anchors(pyramid), image_sizes, training=training
        )
        return proposals, *proposals.flat()

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
            image_index: integers [R].
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
                head = recomputed(head)
            predictions = head(roi_features[spec.kind])
            outputs |= {f"{spec.kind}_{name}": prediction for name, prediction in predictions.items()}
        return outputs

    def call(self, inputs: dict[str, tf.Tensor] | tf.Tensor, training: bool = False) -> dict[str, Any]:
        """Everything up to the head outputs, for images without ground truth.

        Args:
            inputs: "images" and "image_sizes", see the class; or images alone.
            training: whether unfrozen batch norms use batch statistics.

        Returns:
            "proposals" (a `Proposals`), "rois" float32 [R, 4] (the valid proposals, flat), "image_index" int64 [R], and
            the outputs of `run_heads`. Where the fc-head scores and the conv-head only places boxes, R counts just the
            RoIs that some class scores above the threshold: the others cannot become detections.
        """
        inputs = inputs if isinstance(inputs, Mapping) else image_batch(inputs)
        pyramid = self.extract_features(inputs, training=training)
        proposals, rois, image_index = self.propose_rois(pyramid, inputs["image_sizes"], training=training)
        rows = {"rois": rois, "image_index": image_index}
        order = None if training else pooling_order(rois, image_index)
        if order is not None:
            rows = {**_take(rows, order), "order": order}
        if self.variant.scores_before_boxes and not training:
            rows |= self.run_heads(pyramid, rows["rois"], rows["image_index"], training=False, kinds=("fc",))
            rows = _take(rows, surviving_rois(class_probs(rows, "fc"), score_threshold=self.score_threshold))
            rows |= self.run_heads(pyramid, rows["rois"], rows["image_index"], training=False, kinds=("conv",))
        else:
            rows |= self.run_heads(pyramid, rows["rois"], rows["image_index"], training=training)
        if order is not None:  # back, because of equal scores the better proposal's counts
            rows = _take(rows, tf.argsort(rows.pop("order")))
        return {"proposals": proposals, **rows}

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


# Arguments that are data classes, with what makes one of its fields.
_SETTINGS = {"variant": make_variant, "rpn": RPNConfig, "roi": RoIConfig}
_LAYERS = ("normalization", "backbone", "fpn", "rpn_head")


def _take(rows: dict[str, tf.Tensor], places: tf.Tensor) -> dict[str, tf.Tensor]:
    """Of each tensor [R, ...] the rows at places, integers [S]."""
    return {name: tf.gather(values, places) for name, values in rows.items()}


def _argument_names() -> list[str]:
    """Of the constructor of `DoubleHeadRCNN`; each is an attribute."""
    parameters = inspect.signature(DoubleHeadRCNN.__init__).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _pyramid_shapes(backbone: keras.layers.Layer) -> dict[str, tuple]:
    """Shapes of C2..C5; a layer that cannot tell without images is called with symbolic ones."""
    try:
        return backbone.compute_output_shape(IMAGES)
    except NotImplementedError:
        return {name: tuple(output.shape) for name, output in backbone(keras.Input(IMAGES[1:])).items()}

"""The tree of settings: dataclasses whose defaults are the authors' 1x recipe for R-50-FPN (paper, section 5)."""

from dataclasses import dataclass, field
from typing import Any

BACKBONE_DEPTHS = (18, 50, 101)
BACKBONE_NORMS = ("frozen", "batch", "sync", "group")
CONV_HEAD_NORMS = ("frozen", "batch", "sync", "group")
GEOMETRIES = ("continuous", "legacy")
NON_LOCAL_MODES = ("dot_product", "softmax")
CHANNEL_ORDERS = ("rgb", "bgr")
AUGMENTATIONS = ("none", "flip", "multi_scale", "randaugment", "autoaugment_v0")
TRAIN_PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
RESNET = "resnet"
HUB_PREFIX = "keras_hub:"


@dataclass
class BackboneConfig:
    """Backbone: a ResNet, or any KerasHub backbone with pyramid outputs.

    Args:
        name: "resnet"; or "keras_hub:" with a preset or a class of KerasHub, such as
            "keras_hub:efficientnet2_rw_s_ra2_imagenet" or "keras_hub:EfficientNetBackbone" (extra `hub`).
        hub_arguments: of that class's constructor; for a preset, what is to differ from it. Null for a ResNet.
        depth: 18, 50 or 101 layers; this and the next two are of the ResNet.
        width: channels of the stem; 64 is the standard network, smaller ones train on a CPU.
        stride_in_1x1: stage stride in the first 1x1 convolution (authors, caffe) or in the 3x3 (torchvision).
        frozen_stages: 0 trains everything; n freezes the stem and the first n stages (C2, C3, ...).
        norm: "frozen" (fixed statistics, fixed scale and offset), "batch", "sync" (over replicas) or "group" (ResNet).
        weights: initial weights: null (random); for a ResNet "imagenet" or the path of a torchvision-format .pth file;
            for KerasHub a preset (naming one as `name` takes its weights too).
    """

    name: str = RESNET
    hub_arguments: dict[str, Any] | None = None
    depth: int = 50
    width: int = 64
    stride_in_1x1: bool = True
    frozen_stages: int = 1
    norm: str = "frozen"
    weights: str | None = None


@dataclass
class FPNConfig:
    """Feature pyramid.

    Args:
        channels: channels of P2..P6, of the RPN's convolution and of the RoI features.
    """

    channels: int = 256


@dataclass
class RPNConfig:
    """Region proposal network: anchors, assignment, proposals, losses.

    Args:
        anchor_sizes: square root of the anchor area in pixels, one for each of P2..P6.
        anchor_ratios: height / width of the anchors at each place.
        positive_iou: an anchor with at least this IoU with a box is positive.
        negative_iou: an anchor below this IoU with every box is negative; between the two it is ignored.
        low_quality_iou: the best anchors of a box are positive too when they reach this IoU (0: if they touch it).
        low_quality_own_box: such an anchor learns the box that it is the best of (MMDetection), not the one that
            overlaps it most (the authors).
        ignore_border: ignore anchors that cross the border of the unpadded image.
        batch_size: sampled anchors per image.
        positive_fraction: largest share of positives among them.
        pre_nms_train: best-scored proposals kept per level before NMS, in training.
        pre_nms_test: the same at inference.
        post_nms_train: proposals kept per image, over all levels, in training.
        post_nms_test: the same at inference.
        nms_iou: a proposal that overlaps a better one of its level more than this is dropped.
        box_loss_beta: where the smooth L1 box loss turns from quadratic to linear; 0 is plain L1.
    """

    anchor_sizes: list[float] = field(default_factory=lambda: [32.0, 64.0, 128.0, 256.0, 512.0])
    anchor_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    low_quality_iou: float = 0.0
    low_quality_own_box: bool = False
    ignore_border: bool = True
    batch_size: int = 256
    positive_fraction: float = 0.5
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    post_nms_test: int = 1000
    nms_iou: float = 0.7
    box_loss_beta: float = 1.0 / 9.0


@dataclass
class RoIConfig:
    """RoI sampling and pooling.

    Args:
        sampling_ratio: RoIAlign samples per bin and axis; 0 is adaptive, ceil(bin size in cells).
        fc_scale: the RoI is scaled by this about its centre before it is pooled for an fc-head.
        conv_scale: the same for a conv-head.
        batch_size: sampled RoIs per image in training.
        foreground_fraction: largest share of foreground among them.
        foreground_iou: an RoI with at least this IoU with a box takes its class, the others are background.
    """

    sampling_ratio: int = 2
    fc_scale: float = 1.0
    conv_scale: float = 1.3
    batch_size: int = 512
    foreground_fraction: float = 0.25
    foreground_iou: float = 0.5


@dataclass
class FCHeadConfig:
    """Fully connected head.

    Args:
        channels: width of its two layers.
    """

    channels: int = 1024


@dataclass
class NonLocalConfig:
    """Non-local block before every bottleneck of the conv-head.

    Args:
        channels: width of theta, phi and g; 0 builds no non-local blocks.
        groups: attention groups; must divide channels.
        mode: "dot_product" (divided by the number of positions) or "softmax".
    """

    channels: int = 0
    groups: int = 4
    mode: str = "dot_product"


@dataclass
class ConvHeadConfig:
    """Convolution head.

    Args:
        channels: output channels of every block; the bottlenecks' inner width is a quarter of it.
        blocks: number of (non-local, bottleneck) pairs after the residual up-block.
        norm: normalisation of its convolutions: "batch", "sync", "group" or "frozen".
        non_local: the attention blocks.
    """

    channels: int = 1024
    blocks: int = 4
    norm: str = "batch"
    non_local: NonLocalConfig = field(default_factory=NonLocalConfig)


@dataclass
class LossWeightsConfig:
    """Weights of the second-stage losses; null takes the published weight of the variant (0 where it has no such loss).

    Args:
        fc_class: weight of `fc_class_loss`.
        fc_box: weight of `fc_box_loss`.
        conv_class: weight of `conv_class_loss`.
        conv_box: weight of `conv_box_loss`.
    """

    fc_class: float | None = None
    fc_box: float | None = None
    conv_class: float | None = None
    conv_box: float | None = None


@dataclass
class ModelConfig:
    """The detector.

    Args:
        variant: one of the paper's seven detectors: "single_fc", "single_conv", "double_fc", "double_conv",
            "double_head", "double_head_reverse" or "double_head_ext".
        geometry: "continuous", or "legacy" for the authors' inclusive pixel boxes.
        channel_order: order in which the network sees the channels, "rgb" or "bgr".
        pixel_mean: subtracted from 0..255 pixels, in channel_order.
        pixel_std: the difference is divided by this, in channel_order.
        backbone, fpn, rpn, roi, fc_head, conv_head, loss_weights: the parts.
        score_threshold: detections must score more than this.
        nms_iou: a detection that overlaps a better one of its class more than this is dropped.
        max_detections: best detections kept per image.
    """

    variant: str = "double_head"
    geometry: str = "continuous"
    channel_order: str = "rgb"
    pixel_mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])
    pixel_std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    fc_head: FCHeadConfig = field(default_factory=FCHeadConfig)
    conv_head: ConvHeadConfig = field(default_factory=ConvHeadConfig)
    loss_weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100


@dataclass
class ShapesConfig:
    """The generated dataset that is used when no annotations are given.

    Args:
        directory: where it is written, once; a dataset that is already there is used as it is.
        train_images: number of training images.
        val_images: number of validation images.
        seed: same seed, same images.
    """

    directory: str = "data/shapes"
    train_images: int = 480
    val_images: int = 100
    seed: int = 1


@dataclass
class DataConfig:
    """Where images come from and how they are resized and batched.

    Args:
        train_annotations: COCO JSON of the training split; null (all five) uses the generated shapes dataset.
        train_images: folder that its file names are relative to.
        train_tfrecords: pattern of TFRecord files in the Model Garden's detection schema, such as
            "records/train-*.tfrecord"; takes the place of train_annotations and train_images.
        val_annotations: COCO JSON of the validation split.
        val_images: folder that its file names are relative to.
        min_size: the short side is resized to this many pixels ...
        max_size: ... unless the long side would exceed this many.
        augmentation: of training images: "none", "flip", "multi_scale" (flip, and a short side drawn from
            multi_scale_sizes), "randaugment" (flip, and two operations drawn from RandAugment's for detection) or
            "autoaugment_v0" (flip, and a sub-policy of AutoAugment's v0 for detection).
        flip_probability: chance of a horizontal flip, wherever augmentation is not "none".
        multi_scale_sizes: pixels of the short side, drawn for each image, in the place of min_size; validation and
            inference keep min_size.
        scale_jitter: smallest and largest factor by which a training image is scaled after it was resized as above;
            what leaves the canvas is cropped away. Null does not jitter.
        repeat_threshold: images of a class that fewer than this share of the training images show are repeated
            within an epoch, sqrt(repeat_threshold / share) times; 0 repeats none.
        batch_size: images per step over all replicas.
        filter_empty: leave training images without a box out.
        shapes: the generated dataset.
    """

    train_annotations: str | None = None
    train_images: str | None = None
    train_tfrecords: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    min_size: int = 800
    max_size: int = 1333
    augmentation: str = "flip"
    flip_probability: float = 0.5
    multi_scale_sizes: list[int] = field(default_factory=lambda: [640, 672, 704, 736, 768, 800])
    scale_jitter: list[float] | None = None
    repeat_threshold: float = 0.0
    batch_size: int = 8
    filter_empty: bool = False
    shapes: ShapesConfig = field(default_factory=ShapesConfig)


@dataclass
class TrainConfig:
    """Optimisation.

    Args:
        epochs: passes over the training images; null when `steps` is given.
        steps: optimiser steps; null when `epochs` is given.
        drops: when the learning rate is multiplied by drop_factor, in the unit that is given (epochs or steps).
        drop_factor: see drops.
        lr: learning rate for a global batch of base_batch_size; scaled linearly with data.batch_size.
        base_batch_size: see lr.
        warmup_steps: steps of linear warm-up.
        warmup_factor: share of the learning rate that the warm-up starts from.
        momentum: of SGD.
        l2: added to the gradient as l2 * weight, before momentum.
        clip_norm: largest global norm of the gradients; 0 does not clip.
        precision: "float32", "mixed_bfloat16" or "mixed_float16" (with a dynamic loss scale); the precision of the
            layers. Weights, boxes and losses are float32 in each.
        recompute: compute the heads a second time for the gradients, which takes longer and needs less memory.
        evaluate_every: epochs between evaluations on the validation images.
        checkpoint_every: steps between checkpoints, so many are lost at most when training is killed; 0 writes them at
            the end of an epoch only.
        sanity_images: validation images that are evaluated before the first step, so that what fails there fails at
            once; 0 for none.
        pictures: validation images drawn into the run folder.
        seed: of the initial weights, the shuffling and the sampling.
    """

    epochs: int | None = None
    steps: int | None = None
    drops: list[int] = field(default_factory=list)
    drop_factor: float = 0.1
    lr: float = 0.01
    base_batch_size: int = 8
    warmup_steps: int = 500
    warmup_factor: float = 1.0 / 3.0
    momentum: float = 0.9
    l2: float = 1e-4
    clip_norm: float = 0.0
    precision: str = "float32"
    recompute: bool = False
    evaluate_every: int = 1
    checkpoint_every: int = 1000
    sanity_images: int = 2
    pictures: int = 8
    seed: int = 0


@dataclass
class Config:
    """The whole tree.

    Args:
        model: the detector.
        data: images and batches.
        train: optimisation.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

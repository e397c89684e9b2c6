"""The tree of settings, with what each may be beside it.

The defaults are the plain Double-Head R-CNN with ResNet-50 and the authors' 1x recipe on COCO (paper, section 5), but
that biases learn as all else does; the files in configs/ say only what differs.
"""

from dataclasses import dataclass, field
from typing import Any

from dh_keras.config.options import option
from dh_keras.modeling.constants import PYRAMID_LEVELS
from dh_keras.modeling.variants import VARIANTS

RESNET = "resnet"
HUB_PREFIX = "keras_hub:"
NORMS = ("frozen", "batch", "sync", "group")
# What nobody needs more of: beyond these, numbers overflow or fill any machine.
MOST = 1_000_000
MOST_PIXELS = 16384
MOST_STEPS = 10**12
MOST_JITTER = 10.0
MOST_ADAMW_LR = 0.005  # a step changes every weight by about this, whatever its gradient
AUGMENTATIONS = ("none", "flip", "multi_scale", "randaugment", "autoaugment_v0")
# Where files are, which may differ from machine to machine; their content is compared where it matters.
IMAGENET_PIXELS = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
PATH_KEYS = (
    "data.train_annotations",
    "data.train_images",
    "data.train_tfrecords",
    "data.val_annotations",
    "data.val_images",
    "data.augment_file",
    "data.shapes.directory",
)


@dataclass
class BackboneConfig:
    """Backbone: a ResNet, or any KerasHub backbone with pyramid outputs.

    Args:
        name: "resnet"; or "keras_hub:" with a preset or a class of KerasHub, such as
            "keras_hub:efficientnet2_rw_s_ra2_imagenet" or "keras_hub:EfficientNetBackbone" (extra `hub`).
        hub_arguments: of that class's constructor; for a preset, what is to differ from it. Null for a ResNet.
        depth: number of layers; this and the next two are of the ResNet.
        width: channels of the stem; 64 is the standard network, smaller ones train on a CPU.
        stride_in_1x1: stage stride in the first 1x1 convolution (authors, caffe) or in the 3x3 (torchvision).
        frozen_stages: 0 trains everything; n freezes the stem and the first n stages (C2, C3, ...).
        norm: "frozen" (fixed statistics, fixed scale and offset), "batch", "sync" (over replicas) or "group" (ResNet).
        weights: initial weights: null (random); for a ResNet "imagenet" or the path of a torchvision-format .pth file;
            for KerasHub a preset (naming one as `name` takes its weights too).
    """

    name: str = RESNET
    hub_arguments: dict[str, Any] | None = None
    depth: int = option(50, choices=(18, 50, 101))
    width: int = option(64, above=0, most=1024)
    stride_in_1x1: bool = True
    frozen_stages: int = option(1, least=0, most=4, wording="0 to 4")
    norm: str = option("frozen", choices=NORMS)
    weights: str | None = None


@dataclass
class FPNConfig:
    """Feature pyramid.

    Args:
        channels: channels of P2..P6, of the RPN's convolution and of the RoI features.
    """

    channels: int = option(256, above=0, most=4096)


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

    anchor_sizes: list[float] = option(
        [32.0, 64.0, 128.0, 256.0, 512.0],
        length=len(PYRAMID_LEVELS),
        above=0,
        most=MOST_PIXELS,
        wording=f"five sizes above 0 and at most {MOST_PIXELS}, for P2..P6",
    )
    anchor_ratios: list[float] = option(
        [0.5, 1.0, 2.0], filled=True, least=0.01, most=100, wording="at least one ratio, from 0.01 to 100"
    )
    positive_iou: float = option(0.7, least=0, most=1)
    negative_iou: float = option(0.3, least=0, most=1)
    low_quality_iou: float = option(0.0, least=0, most=1)
    low_quality_own_box: bool = False
    ignore_border: bool = True
    batch_size: int = option(256, above=0, most=MOST)
    positive_fraction: float = option(0.5, least=0, most=1)
    pre_nms_train: int = option(2000, above=0, most=MOST)
    pre_nms_test: int = option(1000, above=0, most=MOST)
    post_nms_train: int = option(2000, above=0, most=MOST)
    post_nms_test: int = option(1000, above=0, most=MOST)
    nms_iou: float = option(0.7, least=0, most=1)
    box_loss_beta: float = option(1.0 / 9.0, least=0, most=MOST)


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

    sampling_ratio: int = option(2, least=0, most=64)
    fc_scale: float = option(1.0, above=0, most=100)
    conv_scale: float = option(1.3, above=0, most=100)
    batch_size: int = option(512, above=0, most=100_000)
    foreground_fraction: float = option(0.25, least=0, most=1)
    foreground_iou: float = option(0.5, least=0, most=1)


@dataclass
class FCHeadConfig:
    """Fully connected head.

    Args:
        channels: width of its two layers.
    """

    channels: int = option(1024, above=0, most=65536)


@dataclass
class NonLocalConfig:
    """Non-local block before every bottleneck of the conv-head.

    Args:
        channels: width of theta, phi and g; 0 builds no non-local blocks.
        groups: attention groups; must divide channels.
        mode: "dot_product" (divided by the number of positions) or "softmax".
    """

    channels: int = option(0, least=0, most=65536)
    groups: int = option(4, above=0, most=65536)
    mode: str = option("dot_product", choices=("dot_product", "softmax"))


@dataclass
class ConvHeadConfig:
    """Convolution head.

    Args:
        channels: output channels of every block; the bottlenecks' inner width is a quarter of it.
        blocks: number of (non-local, bottleneck) pairs after the residual up-block.
        norm: normalisation of its convolutions, as for the backbone.
        non_local: the attention blocks.
    """

    channels: int = option(1024, above=0, most=65536)
    blocks: int = option(4, least=0, most=256)
    norm: str = option("batch", choices=NORMS)
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

    fc_class: float | None = option(None, least=0, most=MOST)
    fc_box: float | None = option(None, least=0, most=MOST)
    conv_class: float | None = option(None, least=0, most=MOST)
    conv_box: float | None = option(None, least=0, most=MOST)


@dataclass
class ModelConfig:
    """The detector.

    Args:
        variant: one of the paper's seven detectors.
        geometry: "continuous", or "legacy" for the authors' inclusive pixel boxes.
        channel_order: order in which the network sees the channels.
        pixel_mean: subtracted from 0..255 pixels, in channel_order; null takes what a preset of KerasHub says of its
            pixels, and ImageNet's 123.675, 116.28, 103.53 elsewhere.
        pixel_std: the difference is divided by this, in channel_order; null as for pixel_mean, with 58.395, 57.12,
            57.375.
        backbone, fpn, rpn, roi, fc_head, conv_head, loss_weights: the parts.
        score_threshold: detections must score more than this.
        nms_iou: a detection that overlaps a better one of its class more than this is dropped.
        max_detections: best detections kept per image.
    """

    variant: str = option("double_head", choices=tuple(VARIANTS))
    geometry: str = option("continuous", choices=("continuous", "legacy"))
    channel_order: str = option("rgb", choices=("rgb", "bgr"))
    pixel_mean: list[float] | None = option(None, length=3, least=-MOST, most=MOST, wording="three numbers")
    pixel_std: list[float] | None = option(None, length=3, above=0, most=MOST, wording="three numbers above 0")
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    fc_head: FCHeadConfig = field(default_factory=FCHeadConfig)
    conv_head: ConvHeadConfig = field(default_factory=ConvHeadConfig)
    loss_weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)
    score_threshold: float = option(0.05, least=0, most=1)
    nms_iou: float = option(0.5, least=0, most=1)
    max_detections: int = option(100, above=0, most=100_000)


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
    train_images: int = option(480, above=0, most=MOST)
    val_images: int = option(100, above=0, most=MOST)
    seed: int = option(1, least=0, most=2**32 - 1)


@dataclass
class DataConfig:
    """Where images come from and how they are resized and batched.

    Args:
        train_annotations: COCO JSON of the training split, or a folder or file that another tool wrote; null (all
            five) uses the generated shapes dataset.
        train_images: folder that its file names are relative to.
        train_tfrecords: pattern of TFRecord files in the Model Garden's detection schema, such as
            "records/train-*.tfrecord"; takes the place of train_annotations and train_images.
        val_annotations: the same of the validation split.
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
        mosaic: chance that a training image is made of four: windows of this one and of three that are drawn, each
            scaled by scale_jitter or by 0.5 to 1.
        augment_file: a pipeline of Albumentations that every training image goes through after all of the above, as
            `albumentations.save` writes it, YAML or JSON (extra `augment`).
        repeat_threshold: images of a class that fewer than this share of the training images show are repeated
            within an epoch, sqrt(repeat_threshold / share) times; 0 repeats none.
        verify: before training, decode every image ("full"), or look at headers only ("headers"); "auto" decodes them
            where that takes less than a minute.
        batch_size: images that go through the network together, over all replicas; train.accumulate such batches make
            a step.
        filter_empty: leave training images without a box out.
        shapes: the generated dataset.
    """

    train_annotations: str | None = None
    train_images: str | None = None
    train_tfrecords: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    min_size: int = option(800, above=0, most=MOST_PIXELS)
    max_size: int = option(1333, above=0, most=MOST_PIXELS)
    augmentation: str = option("flip", choices=AUGMENTATIONS)
    flip_probability: float = option(0.5, least=0, most=1)
    multi_scale_sizes: list[int] = option([640, 672, 704, 736, 768, 800])
    scale_jitter: list[float] | None = None
    mosaic: float = option(0.0, least=0, most=1)
    augment_file: str | None = None
    repeat_threshold: float = option(0.0, least=0, most=1)
    batch_size: int = option(8, above=0, most=65536)
    verify: str = option("auto", choices=("auto", "headers", "full"))
    filter_empty: bool = False
    shapes: ShapesConfig = field(default_factory=ShapesConfig)


@dataclass
class TrainConfig:
    """Optimisation.

    Args:
        epochs: passes over the training images; null when `steps` is given.
        steps: optimiser steps; null when `epochs` is given. A file that gives either takes no default for the other
            and for drops.
        optimizer: "sgd", or "adamw", whose learning rate is about how far a weight moves in a step: it wants a
            hundredth of SGD's.
        schedule: of the learning rate after the warm-up: "steps", which are the drops, or "cosine", which falls to 0 at
            the end of training. A file or an override that gives cosine takes no drops.
        drops: when the learning rate is multiplied by drop_factor, in the unit that is given (epochs or steps).
        drop_factor: see drops.
        lr: learning rate for a global batch of base_batch_size; scaled linearly with the images of a step.
        base_batch_size: see lr.
        warmup_steps: steps of linear warm-up.
        warmup_factor: share of the learning rate that the warm-up starts from.
        momentum: of SGD; beta_1 of AdamW, the share of the mean gradient that it keeps.
        l2: added to the gradient as l2 * weight, before momentum; with adamw the weight decay, which takes
            lr * l2 * weight away in every step.
        bias_lr_factor: biases (of convolutions and fully connected layers, and the offsets of trainable norms) learn
            with so many times the learning rate; the authors' recipe has 2.
        bias_l2: l2 of these biases; null takes l2, the authors' recipe has 0.
        clip_norm: largest global norm of the gradients; 0 does not clip.
        ema_momentum: share of the average of the weights that a step keeps, 0.999 for example; the averages are then
            what is evaluated and saved as best and last weights. 0 averages nothing.
        accumulate: batches whose mean gradient makes one update, which is a step: steps, epochs, warm-up and drops
            count updates, and lr follows data.batch_size * accumulate.
        precision: of the layers; "mixed_float16" comes with a dynamic loss scale. Weights, boxes and losses are float32
            in each.
        deterministic: TensorFlow computes everything the same way every time or refuses to, which is slower; what that
            means on a GPU is in the training guide.
        recompute: compute the heads a second time for the gradients, which takes longer and needs less memory.
        evaluate_every: epochs between evaluations on the validation images.
        patience: training ends after so many evaluations in a row without a better AP; 0 trains to the end.
        checkpoint_every: steps between checkpoints, so many are lost at most when training is killed; 0 writes them at
            the end of an epoch only.
        sanity_images: validation images that are evaluated before the first step, so that what fails there fails at
            once; 0 for none.
        pictures: validation images drawn into the run folder.
        seed: of the initial weights, the shuffling and the sampling.
    """

    epochs: int | None = option(None, above=0, most=MOST_STEPS)
    steps: int | None = option(180_000, above=0, most=MOST_STEPS)
    optimizer: str = option("sgd", choices=("sgd", "adamw"))
    schedule: str = option("steps", choices=("steps", "cosine"))
    drops: list[int] = option([120_000, 160_000])
    drop_factor: float = option(0.1, least=0, most=1)
    lr: float = option(0.01, above=0, most=1e38)
    base_batch_size: int = option(8, above=0, most=MOST)
    warmup_steps: int = option(500, least=0, most=MOST_STEPS)
    warmup_factor: float = option(1.0 / 3.0, least=0, most=1)
    momentum: float = option(0.9, least=0, most=1)
    l2: float = option(1e-4, least=0, most=MOST)
    bias_lr_factor: float = option(1.0, above=0, most=MOST)
    bias_l2: float | None = option(None, least=0, most=MOST)
    clip_norm: float = option(0.0, least=0, most=MOST)
    ema_momentum: float = option(0.0, least=0, most=0.999999)
    accumulate: int = option(1, above=0, most=MOST)
    precision: str = option("float32", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    deterministic: bool = False
    recompute: bool = False
    evaluate_every: int = option(1, above=0, most=MOST_STEPS)
    patience: int = option(0, least=0, most=MOST_STEPS)
    checkpoint_every: int = option(1000, least=0, most=MOST_STEPS)
    sanity_images: int = option(2, least=0, most=MOST)
    pictures: int = option(8, least=0, most=MOST)
    seed: int = option(0, least=0, most=2**32 - 1)


@dataclass
class EvaluateConfig:
    """Measuring AP: during training, with `evaluate` and with `analyze`.

    Args:
        batch_size: images of equal size that go through the network together, on each device.
    """

    batch_size: int = option(1, above=0, most=MOST)


@dataclass
class Config:
    """The whole tree.

    Args:
        model: the detector.
        data: images and batches.
        train: optimisation.
        evaluate: measuring.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def images_per_step(self) -> int:
        """Images of one update, over all replicas."""
        return self.data.batch_size * self.train.accumulate

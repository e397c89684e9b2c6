"""Values of a config that cannot work, alone or together."""

from typing import Any

from dh_keras.config.schema import (
    AUGMENTATIONS,
    BACKBONE_DEPTHS,
    BACKBONE_NORMS,
    CHANNEL_ORDERS,
    CONV_HEAD_NORMS,
    GEOMETRIES,
    HUB_PREFIX,
    NON_LOCAL_MODES,
    RESNET,
    TRAIN_PRECISIONS,
    BackboneConfig,
    Config,
    DataConfig,
)
from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import PYRAMID_LEVELS
from dh_keras.modeling.variants import VARIANTS


def validate_config(config: Config) -> None:
    """Refuse values that cannot work, alone or together.

    Raises:
        ConfigError: naming the key's path, what was expected, and what was given.
    """
    _validate_choices(config)
    _validate_ranges(config)
    _validate_backbone(config.model.backbone)
    _validate_combinations(config)
    _validate_data(config.data)


def _require(condition: bool, key: str, expected: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"key {key}: expected {expected}, got {value!r}")


def _validate_choices(config: Config) -> None:
    choices = {
        "model.variant": tuple(VARIANTS),
        "model.geometry": GEOMETRIES,
        "model.channel_order": CHANNEL_ORDERS,
        "model.backbone.depth": BACKBONE_DEPTHS,
        "model.backbone.norm": BACKBONE_NORMS,
        "model.conv_head.norm": CONV_HEAD_NORMS,
        "model.conv_head.non_local.mode": NON_LOCAL_MODES,
        "train.precision": TRAIN_PRECISIONS,
    }
    for key, allowed in choices.items():
        value = _select(config, key)
        _require(value in allowed, key, f"one of {', '.join(map(str, allowed))}", value)


def _select(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = getattr(node, part)
    return node


_POSITIVE = [
    "model.backbone.width",
    "model.fpn.channels",
    "model.fc_head.channels",
    "model.conv_head.channels",
    "model.max_detections",
    "model.rpn.batch_size",
    "model.rpn.pre_nms_train",
    "model.rpn.pre_nms_test",
    "model.rpn.post_nms_train",
    "model.rpn.post_nms_test",
    "model.roi.batch_size",
    "model.roi.fc_scale",
    "model.roi.conv_scale",
    "model.conv_head.non_local.groups",
    "data.min_size",
    "data.max_size",
    "data.batch_size",
    "data.shapes.train_images",
    "data.shapes.val_images",
    "train.lr",
    "train.base_batch_size",
    "train.evaluate_every",
]
_NOT_NEGATIVE = [
    "model.conv_head.blocks",
    "model.conv_head.non_local.channels",
    "model.roi.sampling_ratio",
    "model.rpn.box_loss_beta",
    "model.loss_weights.fc_class",
    "model.loss_weights.fc_box",
    "model.loss_weights.conv_class",
    "model.loss_weights.conv_box",
    "data.shapes.seed",
    "train.warmup_steps",
    "train.l2",
    "train.clip_norm",
    "train.checkpoint_every",
    "train.sanity_images",
    "train.pictures",
    "train.seed",
]
_FRACTIONS = [
    "model.rpn.positive_iou",
    "model.rpn.negative_iou",
    "model.rpn.low_quality_iou",
    "model.rpn.positive_fraction",
    "model.rpn.nms_iou",
    "model.roi.foreground_fraction",
    "model.roi.foreground_iou",
    "model.score_threshold",
    "model.nms_iou",
    "data.flip_probability",
    "data.repeat_threshold",
    "train.drop_factor",
    "train.warmup_factor",
    "train.momentum",
]


def _validate_ranges(config: Config) -> None:
    for key in _POSITIVE:
        _require(_select(config, key) > 0, key, "a number above 0", _select(config, key))
    for key in _NOT_NEGATIVE:
        _require(_select(config, key) >= 0, key, "a number of at least 0", _select(config, key))
    for key in _FRACTIONS:
        _require(0 <= _select(config, key) <= 1, key, "a number from 0 to 1", _select(config, key))
    model = config.model
    _require(
        0 <= model.backbone.frozen_stages <= 4, "model.backbone.frozen_stages", "0 to 4", model.backbone.frozen_stages
    )
    for key in ("pixel_mean", "pixel_std"):
        _require(len(getattr(model, key)) == 3, f"model.{key}", "three numbers", getattr(model, key))
    _require(all(s > 0 for s in model.pixel_std), "model.pixel_std", "numbers above 0", model.pixel_std)
    sizes, ratios = model.rpn.anchor_sizes, model.rpn.anchor_ratios
    _require(len(sizes) == len(PYRAMID_LEVELS), "model.rpn.anchor_sizes", "five sizes, for P2..P6", sizes)
    _require(all(s > 0 for s in sizes), "model.rpn.anchor_sizes", "sizes above 0", sizes)
    _require(
        len(ratios) > 0 and all(r > 0 for r in ratios), "model.rpn.anchor_ratios", "at least one ratio above 0", ratios
    )


def _validate_backbone(backbone: BackboneConfig) -> None:
    is_hub = backbone.name.startswith(HUB_PREFIX) and backbone.name != HUB_PREFIX
    _require(
        backbone.name == RESNET or is_hub,
        "model.backbone.name",
        f"{RESNET}, or {HUB_PREFIX} and a preset or class of KerasHub",
        backbone.name,
    )
    _require(
        is_hub or backbone.hub_arguments is None,
        "model.backbone.hub_arguments",
        f"null, as model.backbone.name is {RESNET}",
        backbone.hub_arguments,
    )


def _validate_combinations(config: Config) -> None:
    model, train = config.model, config.train
    rpn, non_local = model.rpn, model.conv_head.non_local
    _require(
        rpn.negative_iou <= rpn.positive_iou,
        "model.rpn.negative_iou",
        f"at most positive_iou ({rpn.positive_iou})",
        rpn.negative_iou,
    )
    _require(
        non_local.channels % non_local.groups == 0,
        "model.conv_head.non_local.channels",
        f"a multiple of groups ({non_local.groups})",
        non_local.channels,
    )
    _require(model.conv_head.channels % 4 == 0, "model.conv_head.channels", "a multiple of 4", model.conv_head.channels)
    for name, weight in vars(model.loss_weights).items():
        exists = name in VARIANTS[model.variant].loss_weights
        _require(
            exists or weight == 0,
            f"model.loss_weights.{name}",
            f"0, as variant {model.variant} has no {name}_loss",
            weight,
        )
    _require(
        (train.epochs is None) != (train.steps is None),
        "train.epochs",
        "it or train.steps, one of the two",
        train.epochs,
    )
    length, unit = (train.epochs, "epochs") if train.steps is None else (train.steps, "steps")
    _require(length > 0, f"train.{unit}", "a number above 0", length)
    _require(
        train.drops == sorted(set(train.drops)) and all(0 < drop <= length for drop in train.drops),
        "train.drops",
        f"rising numbers from 1 to train.{unit} ({length})",
        train.drops,
    )


def _validate_data(data: DataConfig) -> None:
    _require(
        data.augmentation in AUGMENTATIONS,
        "data.augmentation",
        f"one of {', '.join(AUGMENTATIONS)}",
        data.augmentation,
    )
    _require(data.min_size <= data.max_size, "data.max_size", f"at least min_size ({data.min_size})", data.max_size)
    sizes, jitter = data.multi_scale_sizes, data.scale_jitter
    _require(
        data.augmentation != "multi_scale" or (len(sizes) > 0 and all(0 < size <= data.max_size for size in sizes)),
        "data.multi_scale_sizes",
        f"at least one size, each from 1 to max_size ({data.max_size})",
        sizes,
    )
    _require(
        jitter is None or (len(jitter) == 2 and 0 < jitter[0] <= jitter[1]),
        "data.scale_jitter",
        "null or two rising factors above 0, such as [0.1, 2.0]",
        jitter,
    )
    _validate_data_files(data)


def _validate_data_files(data: DataConfig) -> None:
    for split in ("train", "val"):
        annotations, images = getattr(data, f"{split}_annotations"), getattr(data, f"{split}_images")
        _require(
            (annotations is None) == (images is None),
            f"data.{split}_images",
            f"data.{split}_annotations and it, or neither",
            images,
        )
    _require(
        data.train_annotations is None or data.train_tfrecords is None,
        "data.train_tfrecords",
        "it or data.train_annotations, not both",
        data.train_tfrecords,
    )
    _require(
        data.train_annotations is not None or data.train_tfrecords is not None or data.val_annotations is None,
        "data.train_annotations",
        "a COCO file (or data.train_tfrecords), since data.val_annotations is given",
        None,
    )

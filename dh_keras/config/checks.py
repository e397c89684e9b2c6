"""Values of a config that cannot work: outside their limits, or together."""

from typing import Any

from dh_keras.config.options import is_finite, options
from dh_keras.config.schema import (
    HUB_PREFIX,
    MOST_ADAMW_LR,
    MOST_JITTER,
    RESNET,
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import LOSSES
from dh_keras.modeling.variants import VARIANTS


def validate_config(config: Config) -> None:
    """Refuse values that cannot work, alone or together.

    Raises:
        ConfigError: naming the key's path, what was expected, and what was given.
    """
    for key, value, limits in options(config):
        numbers = not isinstance(value, list) or all(isinstance(item, int | float) for item in value)
        _require(numbers, key, "a list of numbers", value)  # OmegaConf takes lists and keys inside of one
        _require(is_finite(value), key, "finite numbers" if isinstance(value, list) else "a finite number", value)
        _require(limits.allow(value), key, limits.expected, value)
    _validate_backbone(config.model.backbone)
    _validate_model(config.model)
    _validate_length(config.train)
    _validate_optimizer(config.train)
    _validate_data(config.data)
    _validate_data_files(config.data)


def _require(condition: bool, key: str, expected: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"key {key}: expected {expected}, got {value!r:.80}")


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


def _validate_model(model: ModelConfig) -> None:
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
            f"0, as variant {model.variant} has no {LOSSES[name]}",
            weight,
        )


def _validate_length(train: TrainConfig) -> None:
    _require(
        (train.epochs is None) != (train.steps is None),
        "train.epochs",
        "it or train.steps, one of the two",
        train.epochs,
    )
    length, unit = (train.epochs, "epochs") if train.steps is None else (train.steps, "steps")
    _require(
        train.drops == sorted(set(train.drops)) and all(0 < drop <= length for drop in train.drops),
        "train.drops",
        f"rising numbers from 1 to train.{unit} ({length})",
        train.drops,
    )


def _validate_optimizer(train: TrainConfig) -> None:
    _require(
        train.schedule != "cosine" or not train.drops, "train.drops", "none with train.schedule cosine", train.drops
    )
    if train.optimizer != "adamw":
        return
    _require(train.momentum < 1, "train.momentum", "a number below 1 with train.optimizer adamw", train.momentum)
    _require(
        train.lr <= MOST_ADAMW_LR,
        "train.lr",
        f"at most {MOST_ADAMW_LR} with train.optimizer adamw, such as 0.0002",
        train.lr,
    )


def _validate_data(data: DataConfig) -> None:
    _require(data.min_size <= data.max_size, "data.max_size", f"at least min_size ({data.min_size})", data.max_size)
    sizes, jitter = data.multi_scale_sizes, data.scale_jitter
    _require(
        data.augmentation != "multi_scale" or (len(sizes) > 0 and all(0 < size <= data.max_size for size in sizes)),
        "data.multi_scale_sizes",
        f"at least one size, each from 1 to max_size ({data.max_size})",
        sizes,
    )
    _require(
        jitter is None or (len(jitter) == 2 and 0 < jitter[0] <= jitter[1] <= MOST_JITTER),
        "data.scale_jitter",
        f"null or two rising factors above 0 and at most {MOST_JITTER:g}, such as [0.1, 2.0]",
        jitter,
    )


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

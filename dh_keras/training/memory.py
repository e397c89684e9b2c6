"""How much memory a training step needs, estimated from its config before anything is built.

Counted are the outputs of convolutions and fully connected layers, which the gradients need again. The factors are
measured; the estimate was within a factor of 1.4 of the real peak for ResNet-18 and ResNet-50, so a training is only
refused where it is wrong by more than that.
"""

import contextlib
from pathlib import Path

import numpy as np
import psutil

from dh_keras.config.schema import RESNET, Config, ModelConfig
from dh_keras.data.augment import size_limits
from dh_keras.data.canvases import canvases
from dh_keras.errors import ConfigError
from dh_keras.modeling.constants import ROI_OUTPUT_SIZE
from dh_keras.modeling.layers.resnet import BLOCKS_PER_STAGE
from dh_keras.modeling.variants import VARIANTS

# TensorFlow itself, with the graphs of training and evaluation.
_FIXED = 1e9
_BYTES_PER_WEIGHT = 16  # it, its gradient and momentum, and what the update needs on the way
_BYTES_PER_OUTPUT = 8  # it, and what follows it: a norm, an activation, its gradient
_REFUSED_BEYOND = 2.0
_CELLS = ROI_OUTPUT_SIZE**2
_PYRAMID = sum(4.0**-level for level in range(2, 7))  # cells of P2..P6 per pixel
_NO_LIMIT = 2**60  # what Linux writes for none is a little less than 2**63


def check_memory(config: Config, *, canvas_index: np.ndarray, num_classes: int, images: int) -> None:
    """Compare what a training step needs on the CPU with what the machine has; print a warning when it is more.

    Args:
        config: resolved.
        canvas_index: int[N], canvases of the training images.
        num_classes: K.
        images: of a batch that are on this machine.

    Raises:
        ConfigError: when it is so much more that the estimate would have to be very wrong.
    """
    used = np.array(canvases(**size_limits(config.data)))[np.unique(canvas_index)]
    need = step_bytes(config, pixels=int(used.prod(axis=1).max()), num_classes=num_classes, images=images)
    has = machine_bytes()
    if need <= has:
        return
    told = (
        f"a training step needs about {_in_gb(need)} GB of memory, and this machine has {_in_gb(has)}; lower "
        f"data.batch_size ({config.data.batch_size}), data.min_size ({config.data.min_size}) or model.roi.batch_size "
        f"({config.model.roi.batch_size}), or the widths of the model"
    )
    if need > _REFUSED_BEYOND * has:
        raise ConfigError(told)
    print(f"warning: {told}")


def _in_gb(count: float) -> str:
    return f"{count / 1e9:,.0f}" if count >= 1e10 else f"{count / 1e9:.1f}"


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    found = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limit = int(Path(path).read_text(encoding="ascii"))
            found = min(found, limit) if limit < _NO_LIMIT else found
    return found


def step_bytes(config: Config, *, pixels: int, num_classes: int, images: int) -> float:
    """Estimate the peak of a process that trains.

    Args:
        config: resolved.
        pixels: of the largest canvas.
        num_classes: K.
        images: in a batch.
    """
    model = config.model
    backbone_weights, backbone_outputs = _backbone(model)
    fpn = model.fpn.channels
    head_weights, head_outputs = _heads(model, num_classes, recompute=config.train.recompute)
    weights = backbone_weights + 45 * fpn**2 + head_weights
    outputs = pixels * (backbone_outputs + 3 * fpn * _PYRAMID) + model.roi.batch_size * head_outputs
    share = 1.0 if config.train.precision == "float32" else 0.5
    return _FIXED + _BYTES_PER_WEIGHT * weights + share * _BYTES_PER_OUTPUT * images * outputs


def _backbone(model: ModelConfig) -> tuple[float, float]:
    """Weights, and outputs per pixel; of KerasHub's nothing is known."""
    backbone = model.backbone
    if backbone.name != RESNET:
        return 0.0, 0.0
    weights, outputs = 0.0, 0.0 if backbone.frozen_stages else backbone.width / 4
    for stage, blocks in enumerate(BLOCKS_PER_STAGE[backbone.depth]):
        channels = backbone.width * 2**stage
        weights += blocks * 18 * channels**2
        if stage >= backbone.frozen_stages:
            outputs += blocks * (2 if backbone.depth == 18 else 6) * channels / 4 ** (stage + 2)
    return weights, outputs


def _heads(model: ModelConfig, num_classes: int, *, recompute: bool) -> tuple[float, float]:
    """Weights, and outputs per RoI."""
    weights = outputs = 0.0
    fpn, fc, conv = model.fpn.channels, model.fc_head.channels, model.conv_head.channels
    blocks, non_local = model.conv_head.blocks, model.conv_head.non_local.channels
    for head in VARIANTS[model.variant].heads:
        # A head that only places boxes sees foreground RoIs alone.
        share = 1.0 if head.classes else model.roi.foreground_fraction
        width = fc if head.kind == "fc" else conv
        weights += 5 * (num_classes + 1) * width
        outputs += share * (_CELLS * fpn + 5 * num_classes)
        if head.kind == "fc":
            weights += _CELLS * fpn * fc + fc**2
            layers = 2 * fc
        else:
            weights += 9 * fpn**2 + 2 * fpn * conv + blocks * (1.1 * conv**2 + 4 * conv * non_local)
            layers = _CELLS * (fpn + 2 * conv + blocks * (1.5 * conv + (3 * non_local + conv if non_local else 0)))
        outputs += 0.0 if recompute else share * layers
    return weights, outputs

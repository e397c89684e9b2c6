"""What a run is about to train: parameters and operations of every part."""

from collections.abc import Sequence

from dh_keras.config import Config
from dh_keras.data.augment import size_limits
from dh_keras.data.pipeline import canvases
from dh_keras.errors import ConfigError
from dh_keras.flops import backbone_multiply_adds, fpn_multiply_adds, head_multiply_adds, rpn_multiply_adds
from dh_keras.model import DoubleHeadRCNN


def model_rows(model: DoubleHeadRCNN, config: Config) -> list[tuple[str, int, int, float | None]]:
    """Count parameters and forward operations for one training image on the first canvas.

    Args:
        model: built.
        config: what it was built from.

    Returns:
        (part, parameters, trainable parameters, GFLOPs) of the backbone, fpn, rpn_head and each head, then their sum;
        GFLOPs are None where they are not counted, for a backbone of KerasHub. Each head sees
        model.roi.batch_size RoIs.
    """
    height, width = canvases(**size_limits(config.data))[0]
    size = {"height": height, "width": width}
    settings = config.model
    try:
        backbone = backbone_multiply_adds(settings.backbone, **size)
        fpn = fpn_multiply_adds(settings, **size)
    except ConfigError:
        backbone = fpn = None
    counts = {
        "backbone": (model.backbone, backbone),
        "fpn": (model.fpn, fpn),
        "rpn_head": (model.rpn_head, rpn_multiply_adds(settings, **size)),
    }
    for spec in model.variant.heads:
        per_roi = head_multiply_adds(spec, settings, num_classes=model.num_classes)
        counts[spec.name] = (model.heads[spec.name], settings.roi.batch_size * per_roi)
    rows = [
        (part, layer.count_params(), _num_values(layer.trainable_variables), None if count is None else 2e-9 * count)
        for part, (layer, count) in counts.items()
    ]
    gflops = [row[3] for row in rows]
    total = None if None in gflops else sum(gflops)
    return [*rows, ("total", sum(row[1] for row in rows), sum(row[2] for row in rows), total)]


def _num_values(variables: Sequence) -> int:
    return sum(variable.shape.num_elements() for variable in variables)


def format_model_table(model: DoubleHeadRCNN, config: Config) -> str:
    """The rows of `model_rows` as text."""
    height, width = canvases(**size_limits(config.data))[0]
    lines = [f"{'part':<12}{'parameters':>14}{'trainable':>14}{'GFLOPs':>10}"]
    for part, parameters, trainable, gflops in model_rows(model, config):
        operations = "n/a" if gflops is None else f"{gflops:.2f}"
        lines.append(f"{part:<12}{parameters:>14,}{trainable:>14,}{operations:>10}")
    rois = config.model.roi.batch_size
    lines.append(f"(forward, one training image on {height} x {width} pixels, {rois} RoIs for each head)")
    return "\n".join(lines)

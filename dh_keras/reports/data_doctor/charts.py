"""What a data set looks like: class counts, box sizes and shapes, image sizes; and sheets of images with boxes.

matplotlib is used through its object interface: no state, no display. Letters: M boxes.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dh_keras.config.schema import Config
from dh_keras.reports.data_doctor.examined import Examined

_COLORS = {"train": "#2563eb", "val": "#f97316"}
_LARGEST_BAR_CHART = 40  # classes


def overview(splits: Sequence[Examined], config: Config) -> dict[str, bytes]:
    """Draw the figures of a data set.

    Args:
        splits: train, and val if there is one.
        config: its anchors are marked beside the boxes.

    Returns:
        {caption: PNG bytes}.
    """
    return {
        "Boxes of each class": _class_counts(splits),
        "Box sizes after resizing, and anchors": _box_sizes(splits, config),
        "Box shapes, and anchors": _box_shapes(splits, config),
        "Image sizes": _image_sizes(splits),
    }


def _class_counts(splits: Sequence[Examined]) -> bytes:
    names = list(dict.fromkeys(name for examined in splits for name in examined.split.class_names))
    counts = {
        examined.split.name: {
            name: int(np.sum(examined.usable & (examined.split.box_classes == index)))
            for index, name in enumerate(examined.split.class_names)
        }
        for examined in splits
    }
    total = {name: sum(split.get(name, 0) for split in counts.values()) for name in names}
    shown = sorted(names, key=lambda name: -total[name])[:_LARGEST_BAR_CHART]
    figure = Figure(figsize=(6, max(2.2, 0.28 * len(shown) * len(splits) + 1)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(splits)
    for position, (split, of_class) in enumerate(counts.items()):
        places = np.arange(len(shown)) + (position - (len(splits) - 1) / 2) * height
        values = [of_class.get(name, 0) for name in shown]
        bars = axes.barh(places, values, height=height, color=_COLORS[split], label=split)
        axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(shown)), [_short(name) for name in shown])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("boxes" + (f" ({len(shown)} most frequent of {len(names)} classes)" if len(names) > 40 else ""))
    return _finish(figure, axes)


def _box_sizes(splits: Sequence[Examined], config: Config) -> bytes:
    sides = {examined.split.name: _resized_sides(examined, config) for examined in splits}
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    highest = max([*config.model.rpn.anchor_sizes, *(side.max() for side in sides.values() if side.size)]) * 1.2
    lowest = max(1.0, min([config.model.rpn.anchor_sizes[0], *(s.min() for s in sides.values() if s.size)]) * 0.8)
    bins = np.geomspace(lowest, highest, 50)
    for name, side in sides.items():
        axes.hist(side, bins=bins, histtype="stepfilled", alpha=0.5, color=_COLORS[name], label=name)
    for index, size in enumerate(config.model.rpn.anchor_sizes):
        axes.axvline(size, color="#111827", linestyle="--", linewidth=1, label=None if index else "anchor sizes")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"square root of the box area, pixels at {config.data.min_size} to {config.data.max_size}")
    axes.set_ylabel("boxes")
    return _finish(figure, axes)


def _resized_sides(examined: Examined, config: Config) -> np.ndarray:
    """Return float64[M], the square root of each usable box's area after resizing."""
    sizes = examined.sizes[examined.split.box_images[examined.usable]].astype(np.float64).reshape(-1, 2)
    scale = np.minimum(config.data.min_size / sizes.min(axis=1), config.data.max_size / sizes.max(axis=1))
    return _sides(examined) * scale


def _sides(examined: Examined) -> np.ndarray:
    boxes = examined.boxes[examined.usable]
    return np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _box_shapes(splits: Sequence[Examined], config: Config) -> bytes:
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    bins = np.geomspace(1 / 8, 8, 61)
    for examined in splits:
        boxes = examined.boxes[examined.usable]
        height, width = (boxes[:, 2:] - boxes[:, :2]).T
        shapes = np.clip(height / width, 1 / 8, 8)
        axes.hist(shapes, bins=bins, alpha=0.5, color=_COLORS[examined.split.name], label=examined.split.name)
    for index, ratio in enumerate(config.model.rpn.anchor_ratios):
        axes.axvline(ratio, color="#111827", linestyle="--", linewidth=1, label=None if index else "anchor ratios")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("height / width of the box (beyond 8: at the edge)")
    axes.set_ylabel("boxes")
    return _finish(figure, axes)


def _image_sizes(splits: Sequence[Examined]) -> bytes:
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for examined in splits:
        sizes, counts = np.unique(examined.sizes[examined.good], axis=0, return_counts=True)
        label = f"{examined.split.name}: {counts.sum()} images, {len(sizes)} size{'s' * (len(sizes) != 1)}"
        area = 20 + 180 * counts / max(counts.max(initial=1), 1)
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, alpha=0.5, color=_COLORS[examined.split.name], label=label)
    highest = np.concatenate([examined.sizes[examined.good] for examined in splits]).max(axis=0, initial=1) * 1.15
    axes.set_xlim(0, highest[1])
    axes.set_ylim(0, highest[0])
    axes.set_xlabel("width, pixels (larger dot: more images)")
    axes.set_ylabel("height, pixels")
    return _finish(figure, axes, legend="lower left")


def _finish(figure: Figure, axes: Axes, legend: str = "best") -> bytes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc=legend)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"

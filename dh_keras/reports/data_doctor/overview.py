"""What a data set looks like: class counts, box sizes and shapes, image sizes.

matplotlib is used through its object interface: no state, no display.
"""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dh_keras.config.schema import Config
from dh_keras.reports.data_doctor.examined import Examined, class_names_of
from dh_keras.reports.data_doctor.sheets import data_address
from dh_keras.reports.plotting import plain_labels, use_fonts_with_all_letters

_COLORS = {"train": "#2563eb", "val": "#f97316"}
_LARGEST_BAR_CHART = 40  # classes


def overview(splits: Sequence[Examined], config: Config) -> dict[str, str]:
    """Draw the figures of a data set.

    Args:
        splits: train, and val if there is one.
        config: its anchors are marked beside the boxes.

    Returns:
        {caption: PNG as a data address}.
    """
    return {
        "Boxes of each class": _class_counts(splits),
        "Box sizes after resizing, and anchors": _box_sizes(splits, config),
        "Box shapes, and anchors": _box_shapes(splits, config),
        "Image sizes": _image_sizes(splits),
    }


def _class_counts(splits: Sequence[Examined]) -> str:
    counts = {examined.split.name: examined.class_counts() for examined in splits}
    total = sum(map(Counter, counts.values()), Counter())
    names = class_names_of(splits)
    shown = sorted(names, key=lambda name: -total[name])[:_LARGEST_BAR_CHART]
    figure, axes = _new_figure(max(2.2, 0.28 * len(shown) * len(splits) + 1))
    height = 0.8 / len(splits)
    for position, (split, of_class) in enumerate(counts.items()):
        places = np.arange(len(shown)) + (position - (len(splits) - 1) / 2) * height
        values = [of_class.get(name, 0) for name in shown]
        bars = axes.barh(places, values, height=height, color=_COLORS[split], label=split)
        axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(shown)), plain_labels(shown))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("boxes" + (f" ({len(shown)} most frequent of {len(names)} classes)" if len(names) > 40 else ""))
    return _finish(figure, axes)


def _box_sizes(splits: Sequence[Examined], config: Config) -> str:
    """Square root of each usable box's area after resizing."""
    sides, anchors, limits = {}, config.model.rpn.anchor_sizes, config.data
    for examined in splits:
        sizes = examined.sizes[examined.split.box_images[examined.usable]].astype(np.float64).reshape(-1, 2)
        scale = np.minimum(limits.min_size / sizes.min(axis=1), limits.max_size / sizes.max(axis=1))
        sides[examined.split.name] = np.sqrt(examined.box_sides()[examined.usable].prod(axis=1)) * scale
    highest = max([*anchors, *(side.max() for side in sides.values() if side.size)]) * 1.2
    lowest = max(1.0, min([anchors[0], *(side.min() for side in sides.values() if side.size)]) * 0.8)
    label = f"square root of the box area, pixels at {limits.min_size} to {limits.max_size}"
    return _histogram(sides, np.geomspace(lowest, highest, 50), label, {"anchor sizes": anchors}, histtype="stepfilled")


def _box_shapes(splits: Sequence[Examined], config: Config) -> str:
    shapes = {}
    for examined in splits:
        height, width = examined.box_sides()[examined.usable].T
        shapes[examined.split.name] = np.clip(height / width, 1 / 8, 8)
    label = "height / width of the box (beyond 8: at the edge)"
    return _histogram(shapes, np.geomspace(1 / 8, 8, 61), label, {"anchor ratios": config.model.rpn.anchor_ratios})


def _histogram(
    values: dict[str, np.ndarray], bins: np.ndarray, label: str, marks: dict[str, Sequence[float]], **style: Any
) -> str:
    """Boxes of each split over a logarithmic axis, and the values of the anchors on it."""
    figure, axes = _new_figure()
    for name, of_split in values.items():
        axes.hist(of_split, bins=bins, alpha=0.5, color=_COLORS[name], label=name, **style)
    [(name, places)] = marks.items()
    for index, place in enumerate(places):
        axes.axvline(place, color="#111827", linestyle="--", linewidth=1, label=None if index else name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=label, ylabel="boxes")
    return _finish(figure, axes)


def _image_sizes(splits: Sequence[Examined]) -> str:
    figure, axes = _new_figure()
    for examined in splits:
        sizes, counts = np.unique(examined.sizes[examined.good], axis=0, return_counts=True)
        label = f"{examined.split.name}: {counts.sum()} images, {len(sizes)} size{'s' * (len(sizes) != 1)}"
        area = 20 + 180 * counts / max(counts.max(initial=1), 1)
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, alpha=0.5, color=_COLORS[examined.split.name], label=label)
    highest = np.concatenate([examined.sizes[examined.good] for examined in splits]).max(axis=0, initial=1) * 1.15
    axes.set(xlim=(0, highest[1]), ylim=(0, highest[0]))
    axes.set(xlabel="width, pixels (larger dot: more images)", ylabel="height, pixels")
    return _finish(figure, axes, legend="lower left")


def _new_figure(height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, height), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Figure, axes: Axes, legend: str = "best") -> str:
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc=legend)
    use_fonts_with_all_letters(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return data_address(buffer.getvalue(), "png")

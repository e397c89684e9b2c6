"""Figures of the comparison of the heads, laid out as in the paper's section 3: fc-head blue, conv-head orange."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dh_keras.evaluation.coco_metrics import format_number
from dh_keras.reports.plotting import new_figure, save_figure, say_nothing_to_show, style_panel

COLORS = {"fc": "tab:blue", "conv": "tab:orange"}
_COLOR_MAP = mpl.colormaps["RdBu_r"].with_extremes(over="black")
# A map of maps is this many pixels wide for each small map, whatever its number of cells, and the gap after it.
_MAP_PIXELS, _GAP_PIXELS = 21, 3


def draw_figures(
    folder: Path,
    results: dict[str, Any],
    feature_correlation: dict[str, np.ndarray],
    weight_correlation: dict[str, np.ndarray],
) -> None:
    """Write the five figures into a folder.

    Args:
        folder: exists.
        results: of `summarize_heads`.
        feature_correlation: for "fc" and "conv" [49, 49].
        weight_correlation: "fc" [49, 49], "conv" [9, 9].
    """
    figures = {
        "score_against_iou": _draw_bins(results, "score", "score of the object's class"),
        "box_iou": _draw_bins(results, "box_iou", "IoU of regressed box and object"),
        "pearson_by_size": _draw_pearson(results),
        "feature_correlation": _draw_correlations(
            "Correlation between the cells of an object's features",
            feature_correlation,
            {"fc": "fc-head: what each cell adds to the first layer", "conv": "conv-head: output feature map"},
            results["feature_correlation"],
        ),
        "weight_correlation": _draw_correlations(
            "Correlation between the places of the weights",
            weight_correlation,
            {"fc": "fc-head: first layer", "conv": "conv-head: 3x3 kernels, averaged"},
            results["weight_correlation"],
        ),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")


def _draw_bins(results: dict[str, Any], key: str, label: str) -> Figure:
    """Mean and one standard deviation against the window's IoU (paper, figure 3), a panel for each size."""
    sizes = results["by_size"]
    figure = new_figure(4 * len(sizes), 4.2, f"{label[0].upper()}{label[1:]}: mean ± one standard deviation")
    edges = np.array(results["iou_bins"])
    centres = (edges[1:] + edges[:-1]) / 2
    for axes, (size, row) in zip(figure.subplots(1, len(sizes), sharey=True), sizes.items(), strict=True):
        style_panel(axes, title=f"{size} objects ({row['objects']})", x="IoU of window and object", y="")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        if not row["objects"]:
            say_nothing_to_show(axes, "no such objects")
            continue
        for kind, color in COLORS.items():
            mean, std = (np.array(row[kind][f"{key}_{name}"], np.float64) for name in ("mean", "std"))
            axes.plot(centres, mean, color=color, marker=".", label=f"{kind}-head")
            axes.fill_between(centres, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
        if key == "box_iou":
            axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="the window itself")
    first = figure.axes[0]
    first.set_ylabel(label, fontsize=9)
    first.legend(loc="lower right" if key == "box_iou" else "upper left", fontsize=9)
    return figure


def _draw_pearson(results: dict[str, Any]) -> Figure:
    """Mean over the objects and its standard deviation as bars (paper, figure 4)."""
    sizes = results["by_size"]
    figure = new_figure(7.5, 4.5, "Correlation of score and IoU of an object's windows: mean ± one standard deviation")
    axes = figure.subplots()
    style_panel(axes, title="", x="", y="Pearson correlation")
    for offset, (kind, color) in zip((-0.2, 0.2), COLORS.items(), strict=True):
        means, stds = (
            np.array([row[kind][key] for row in sizes.values()], np.float64) for key in ("pearson", "pearson_std")
        )
        places = np.arange(len(sizes)) + offset
        axes.bar(places, means, 0.38, color=color, label=f"{kind}-head")
        axes.errorbar(places, means, stds, fmt="none", ecolor="0.35", capsize=4)
        for place, mean in zip(places, means, strict=True):
            if np.isfinite(mean):
                axes.annotate(f"{mean:.3f}", (place, 0), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xticks(range(len(sizes)), [f"{size}\n({row['objects']} objects)" for size, row in sizes.items()])
    axes.set_ylim(top=1.15)
    axes.legend(loc="upper right", ncols=2, fontsize=9)
    return figure


def _draw_correlations(
    title: str, matrices: dict[str, np.ndarray], names: dict[str, str], numbers: dict[str, dict[str, float | None]]
) -> Figure:
    """A map of maps for each head (paper, figure 6): the small map at a cell is that cell's correlation with all."""
    figure = new_figure(12, 6.2, title)
    # A cell's correlation with itself is above the limit: it would leave no colours for the rest.
    limit = max(0.05, *(np.nanmax(np.abs(matrix - np.eye(len(matrix))), initial=0.0) for matrix in matrices.values()))
    for axes, (kind, name) in zip(figure.subplots(1, 2), names.items(), strict=True):
        pairs, neighbours = map(format_number, numbers[kind].values())
        style_panel(axes, title=f"{name}\nall pairs {pairs}, neighbours {neighbours}", x="column", y="row")
        picture = _draw_map_of_maps(axes, matrices[kind], limit)
    figure.colorbar(picture, ax=figure.axes, label="Pearson correlation; black: with itself", shrink=0.85, extend="max")
    return figure


def _draw_map_of_maps(axes: Axes, matrix: np.ndarray, limit: float) -> AxesImage:
    side = round(len(matrix) ** 0.5)
    enlarged = np.kron(matrix.reshape(len(matrix), side, side), np.ones((_MAP_PIXELS // side,) * 2))
    framed = np.pad(enlarged, [(0, 0), (0, _GAP_PIXELS), (0, _GAP_PIXELS)], constant_values=np.nan)
    step = framed.shape[1]
    mosaic = framed.reshape(side, side, step, step).transpose(0, 2, 1, 3).reshape(side * step, side * step)
    picture = axes.imshow(mosaic, cmap=_COLOR_MAP, vmin=-limit, vmax=limit, interpolation="nearest")
    ticks = np.arange(side) * step + (step - _GAP_PIXELS - 1) / 2
    axes.set_xticks(ticks, range(1, side + 1))
    axes.set_yticks(ticks, range(1, side + 1))
    axes.grid(False)
    for edge in axes.spines.values():
        edge.set_visible(False)
    return picture

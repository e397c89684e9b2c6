"""Figures of the comparison of the heads, laid out as in the paper's section 3: fc-head blue, conv-head orange."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {"fc": "tab:blue", "conv": "tab:orange"}
_STYLE = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "savefig.dpi": 110,
    "figure.constrained_layout.use": True,
}


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
    with mpl.rc_context(_STYLE):
        figures = {
            "score_against_iou": _draw_bins(results, "score", "classification score"),
            "box_iou": _draw_bins(results, "box_iou", "IoU of the regressed box", diagonal=True),
            "pearson_by_size": _draw_pearson(results),
            "feature_correlation": _draw_correlations(
                feature_correlation,
                {"fc": "fc-head: what each cell adds to the first layer", "conv": "conv-head: output feature map"},
                results["feature_correlation"],
            ),
            "weight_correlation": _draw_correlations(
                weight_correlation,
                {"fc": "fc-head: weights of the first layer", "conv": "conv-head: 3x3 kernels (mean)"},
                results["weight_correlation"],
            ),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")


def _draw_bins(results: dict[str, Any], key: str, label: str, *, diagonal: bool = False) -> Figure:
    """Mean and one standard deviation against the window's IoU (paper, figure 3), a panel for each size."""
    sizes = results["by_size"]
    figure = Figure(figsize=(4 * len(sizes), 4.2))
    edges = np.array(results["iou_bins"])
    centres = (edges[1:] + edges[:-1]) / 2
    for axes, (size, row) in zip(figure.subplots(1, len(sizes), sharey=True), sizes.items(), strict=True):
        for kind, colour in COLOURS.items():
            mean, std = (np.array(row[kind][f"{key}_{name}"], np.float64) for name in ("mean", "std"))
            axes.plot(centres, mean, color=colour, marker=".", label=f"{kind}-head")
            axes.fill_between(centres, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)
        if diagonal:
            axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="the window itself")
        axes.set(title=_size_title(size, row["objects"]), xlabel="IoU of window and object", xlim=(0, 1), ylim=(0, 1))
    first = figure.axes[0]
    first.set_ylabel(f"{label}\n(mean, ± one standard deviation)")
    first.legend(loc="upper left")
    return figure


def _size_title(size: str, objects: int) -> str:
    return f"{'all' if size == 'all' else size + ' objects'} ({objects})"


def _draw_pearson(results: dict[str, Any]) -> Figure:
    """Mean over the objects and its standard deviation as bars (paper, figure 4)."""
    sizes = results["by_size"]
    figure = Figure(figsize=(7.5, 4.5))
    axes = figure.subplots()
    for offset, (kind, colour) in zip((-0.2, 0.2), COLOURS.items(), strict=True):
        means, stds = (
            np.array([row[kind][key] for row in sizes.values()], np.float64) for key in ("pearson", "pearson_std")
        )
        places = np.arange(len(sizes)) + offset
        axes.bar(places, means, 0.38, color=colour, label=f"{kind}-head", zorder=2)
        axes.errorbar(places, means, stds, fmt="none", ecolor="0.35", capsize=4, zorder=3)
        for place, mean in zip(places, means, strict=True):
            if np.isfinite(mean):
                axes.annotate(f"{mean:.3f}", (place, 0.02), ha="center", color="white", fontweight="bold", zorder=4)
    axes.set_xticks(range(len(sizes)), [f"{size}\n({row['objects']} objects)" for size, row in sizes.items()])
    axes.set(ylabel="Pearson correlation of IoU and score\n(mean over objects, ± one standard deviation)")
    axes.set_ylim(top=1.15)
    axes.legend(loc="upper right", ncols=2)
    return figure


def _draw_correlations(
    matrices: dict[str, np.ndarray], titles: dict[str, str], numbers: dict[str, dict[str, float | None]]
) -> Figure:
    """A map of maps for each head (paper, figure 6): the small map at a cell is that cell's correlation with all."""
    figure = Figure(figsize=(13, 6.6))
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        mean = numbers[kind]["all_pairs"]
        shown = "n/a" if mean is None else f"{mean:.3f}"
        axes.set_title(f"{title}\nmean over pairs of different cells {shown}")
        picture = _draw_mosaic(axes, matrices[kind])
    figure.colorbar(picture, ax=figure.axes, label="Pearson correlation over the channels", shrink=0.85)
    return figure


def _draw_mosaic(axes: Axes, matrix: np.ndarray) -> Any:
    side = round(len(matrix) ** 0.5)
    maps = np.full((side, side + 1, side, side + 1), np.nan)  # a blank row and column between the maps
    maps[:, :side, :, :side] = matrix.reshape(side, side, side, side).transpose(0, 2, 1, 3)
    mosaic = maps.reshape(side * (side + 1), side * (side + 1))[:-1, :-1]
    picture = axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xlabel="column of the cell", ylabel="row of the cell")
    ticks = np.arange(side) * (side + 1) + (side - 1) / 2
    axes.set_xticks(ticks, range(1, side + 1))
    axes.set_yticks(ticks, range(1, side + 1))
    axes.grid(False)
    for edge in axes.spines.values():
        edge.set_visible(False)
    return picture

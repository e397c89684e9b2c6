"""How a training went: losses, AP, learning rate and speed over the epochs, from `metrics.csv`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dh_keras.errors import DataError, one_line
from dh_keras.modeling.constants import LOSS_NAMES, LOSSES
from dh_keras.reports.plotting import line_colors, new_figure, save_figure, say_nothing_to_show, style_panel
from dh_keras.training.recording import VALIDATION_LOSSES

NEEDED = ("epoch", "step", *LOSS_NAMES, "total_loss", "lr", "images_per_second", "data_wait", "AP", "AP50", "AP75")
OTHERS = ("APs", "APm", "APl", *VALIDATION_LOSSES)  # may be missing
Row = dict[str, float | None]


def read_metrics(path: Path) -> list[Row]:
    """Read a run's table; an empty cell is None.

    Raises:
        DataError: naming the file and the line, when it is empty, lacks a column or holds something else than numbers.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = _read_rows(path, csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is damaged: {one_line(error)}; mend or remove it") from error
    if not rows:
        raise DataError(f"{path}: has no row yet; training writes one at the end of every epoch")
    return rows


def _read_rows(path: Path, reader: csv.DictReader) -> list[Row]:
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: expected the columns of a training run, {', '.join(missing)} missing")
    rows = []
    for row in reader:
        try:
            rows.append({name: float(row[name]) if row.get(name) else None for name in (*NEEDED, *OTHERS)})
        except ValueError as error:
            raise DataError(f"{path}: line {reader.line_num}: expected numbers: {one_line(error)}") from error
        if rows[-1]["epoch"] is None or row["AP75"] is None:
            raise DataError(f"{path}: line {reader.line_num}: cut off; remove the line")
    return rows


def best_row(rows: Sequence[Row]) -> Row | None:
    """The first row with the highest AP, whose weights are the best; None where nothing was evaluated."""
    rated = [row for row in rows if row["AP"] is not None]
    return max(rated, key=lambda row: row["AP"]) if rated else None


def draw_curves(path: Path, rows: Sequence[Row], loss_weights: dict[str, float], drops: Sequence[float]) -> None:
    """Draw four panels over the epochs.

    Args:
        path: the PNG file.
        rows: see `read_metrics`.
        loss_weights: {name of a loss: its weight in the total}.
        drops: epochs after which the learning rate was lowered.
    """
    figure = new_figure(12, 8, f"Training, {int(rows[-1]['epoch'])} epochs, {int(rows[-1]['step'])} steps")
    (losses, precision), (rate, speed) = figure.subplots(2, 2)
    draw_losses(losses, rows, loss_weights)
    _draw_precision(precision, rows)
    _draw_rate(rate, rows, drops)
    _draw_speed(speed, rows)
    epochs = {row["epoch"] for row in rows}
    for axes in (losses, precision, rate, speed):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(epochs) == 1:  # in the middle
            axes.set_xlim(min(epochs) - 1, min(epochs) + 1)
    save_figure(figure, path)


def _draw(axes: Axes, rows: Sequence[Row], names: dict[str, str], **style: Any) -> None:
    """Draw columns over the epochs; rows without a number are skipped, and few rows get dots."""
    for color, (name, label) in zip(line_colors(len(names)), names.items(), strict=True):
        points = [(row["epoch"], row[name]) for row in rows if row[name] is not None]
        marker = "o" if len(points) <= 30 else None
        options = {"color": color, "linewidth": 1.6, "marker": marker, "markersize": 3.5, "label": label} | style
        axes.plot(*zip(*points, strict=True), **options)


def draw_losses(axes: Axes, rows: Sequence[Row], loss_weights: dict[str, float]) -> None:
    """Draw the losses of training, and dashed in the same colours those on validation images."""
    used = {short: name for short, name in LOSSES.items() if any(row[name] for row in rows)}
    labels = {name: f"{short.replace('_', ' ')} (weight {loss_weights[name]:g})" for short, name in used.items()}
    _draw(axes, rows, labels)
    _draw(axes, rows, {"total_loss": "total, weighted"}, color="black", linewidth=2.2)
    if any(row["val_total_loss"] is not None for row in rows):
        dashed = {"linestyle": (0, (3, 1.5)), "linewidth": 1.2}
        _draw(axes, rows, {f"val_{name}": "_" for name in used.values()}, **dashed)
        _draw(axes, rows, {"val_total_loss": "dashed: on validation images"}, color="black", **dashed)
    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** 0.35)  # room for the legend
    style_panel(axes, title="losses before they are weighted, means of the epoch", x="epoch", y="loss, log scale")
    axes.legend(fontsize=8, ncols=2, loc="upper right", framealpha=0.85)


def _draw_precision(axes: Axes, rows: Sequence[Row]) -> None:
    best = best_row(rows)
    if best is None:
        say_nothing_to_show(axes, "no AP: the run has no validation images")
        return
    _draw(axes, rows, {"AP": "AP", "AP50": "AP50", "AP75": "AP75"})
    axes.axvline(best["epoch"], color="0.6", linewidth=1, linestyle="--", label="best AP")
    title = f"average precision, best AP {best['AP']:.3f} at epoch {int(best['epoch'])}"
    style_panel(axes, title=title, x="epoch", y="average precision")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, loc="best", framealpha=0.85)


def _draw_rate(axes: Axes, rows: Sequence[Row], drops: Sequence[float]) -> None:
    """Draw what was recorded, and where it was lowered in between."""
    _draw(axes, rows, {"lr": "at the end of the epoch"}, linestyle="none", marker="o")
    for number, epoch in enumerate(drop for drop in drops if drop <= rows[-1]["epoch"]):
        axes.axvline(epoch, color="0.6", linewidth=1, linestyle="--", label=None if number else "lowered after")
    axes.set_yscale("log")
    style_panel(axes, title="learning rate", x="epoch", y="learning rate, log scale")
    axes.legend(fontsize=8, loc="best", framealpha=0.85)


def _draw_speed(axes: Axes, rows: Sequence[Row]) -> None:
    (throughput, waiting) = line_colors(3)[1:]
    _draw(axes, rows, {"images_per_second": "images per second"}, color=throughput)
    style_panel(axes, title="speed", x="epoch", y="images per second")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    share = axes.twinx()
    points = [(row["epoch"], 100 * row["data_wait"]) for row in rows if row["data_wait"] is not None]
    share.plot(*zip(*points, strict=True), color=waiting, linewidth=1.6, marker="o", markersize=3.5, label="waiting")
    share.set_ylabel("% of the time spent waiting for data", fontsize=9, color=waiting)
    share.set_ylim(0, max([10.0, *(1.15 * value for _, value in points)]))
    share.tick_params(labelsize=8, colors=waiting)
    axes.tick_params(axis="y", colors=throughput)
    axes.yaxis.label.set_color(throughput)

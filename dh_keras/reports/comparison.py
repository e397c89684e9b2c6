"""Runs that differ by variant and seed alone: their table, their figure, and how certain their differences are."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import stats

from dh_keras.errors import DataError
from dh_keras.evaluation.coco_metrics import format_number
from dh_keras.files import replaced_text, write_text
from dh_keras.reports.curves import read_metrics
from dh_keras.reports.plotting import line_colors, new_figure, save_figure, say_nothing_to_show, style_panel
from dh_keras.run.run_folder import LAST_WEIGHTS, METRICS_FILE
from dh_keras.run.weights import count_parameters
from dh_keras.training.grid import GridRun

TABLE_FILE, CSV_FILE, FIGURE_FILE = "comparison.md", "comparison.csv", "comparison.png"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
CONFIDENCE = 0.95
Row = dict[str, Any]


def write_comparison(output: Path, runs: Sequence[GridRun], *, base: str) -> str:
    """Write what the finished runs of a grid say into its folder, in the place of what was there.

    Args:
        output: the folder; gets comparison.csv (a row for every run), .md and .png.
        runs: finished.
        base: the variant that the others are compared with.

    Returns:
        The text of comparison.md.

    Raises:
        DataError: when a run has no evaluation or cannot be read.
    """
    rows = [measure_run(run) for run in runs]
    with replaced_text(output / CSV_FILE) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    text = f"{format_table(rows)}\n\n{format_differences(rows, base)}\n"
    write_text(output / TABLE_FILE, text)
    _draw(output / FIGURE_FILE, rows, base)
    return text


def measure_run(run: GridRun) -> Row:
    """What a run's last evaluation measured, and its costs; the best of several would be chosen by what is compared."""
    history = read_metrics(run.folder / METRICS_FILE)
    evaluated = [row for row in history if row["AP"] is not None]
    if not evaluated:
        raise DataError(f"{run.folder / METRICS_FILE}: has no row with an AP; the run has no validation images")
    speeds = [row["images_per_second"] for row in history if row["images_per_second"]]
    return {
        "variant": run.variant,
        "seed": run.seed,
        **{name: evaluated[-1][name] for name in METRICS},
        "parameters": count_parameters(run.folder / LAST_WEIGHTS),
        "seconds_per_step": run.config.images_per_step / statistics.median(speeds) if speeds else None,
        "steps": int(history[-1]["step"]),
    }


def _by_variant(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return found


def format_table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over the seeds as a Markdown table, a row for each variant."""
    lines = [
        f"| variant | seeds | {' | '.join(METRICS)} | parameters | seconds per step |",
        f"|---|---|{'---|' * (len(METRICS) + 2)}",
    ]
    for variant, of_variant in _by_variant(rows).items():
        cells = [_mean_and_deviation([row[name] for row in of_variant]) for name in METRICS]
        times = [row["seconds_per_step"] for row in of_variant if row["seconds_per_step"] is not None]
        time = f"{statistics.median(times):.3f}" if times else "-"
        parameters = f"{of_variant[0]['parameters']:,}"
        lines.append(f"| {variant} | {len(of_variant)} | {' | '.join(cells)} | {parameters} | {time} |")
    return "\n".join(lines)


def _mean_and_deviation(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{format_number(statistics.fmean(known))}{deviation}"


def paired_difference(rows: Sequence[Row], base: str, variant: str, name: str) -> tuple[float, float, float] | None:
    """Mean of a variant's measure minus the base's with the same seed, and the ends of its 95% confidence interval.

    The interval is Student's, of the paired t-test; infinite with one seed. None where the two have no seed in common.
    """
    by_variant = {key: {row["seed"]: row[name] for row in found} for key, found in _by_variant(rows).items()}
    ours, theirs = by_variant.get(variant, {}), by_variant.get(base, {})
    pairs = [(ours[seed], theirs[seed]) for seed in ours if None not in (ours[seed], theirs.get(seed))]
    if not pairs:
        return None
    mean = statistics.fmean(a - b for a, b in pairs)
    if len(pairs) == 1:
        return mean, -math.inf, math.inf
    if len({a - b for a, b in pairs}) == 1:
        return mean, mean, mean
    interval = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(CONFIDENCE)
    return mean, float(interval.low), float(interval.high)


def format_differences(rows: Sequence[Row], base: str) -> str:
    """Differences from the base as a Markdown table with their confidence intervals."""
    names = METRICS[:3]
    lines = [
        f"Differences from `{base}` with the same seed, and the {CONFIDENCE:.0%} confidence interval of their mean:",
        "",
        f"| variant | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for variant in _by_variant(rows):
        if variant != base:
            cells = [_format_difference(paired_difference(rows, base, variant, name)) for name in names]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_difference(difference: tuple[float, float, float] | None) -> str:
    if difference is None:
        return "-"
    mean, low, high = difference
    return f"{mean:+.3f} (one seed)" if math.isinf(low) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _draw(path: Path, rows: Sequence[Row], base: str) -> None:
    """Draw every run as a point, and the differences from the base."""
    variants = list(_by_variant(rows))
    figure = new_figure(13, 1.6 + 0.75 * len(variants), f"{len(rows)} trainings, equal but for variant and seed")
    *measured, differences = figure.subplots(1, 4, sharey=True)
    colors = dict(zip(variants, line_colors(len(variants)), strict=True))
    for axes, name in zip(measured, METRICS[:3], strict=True):
        _draw_points(axes, rows, name, colors)
    _draw_differences(differences, rows, base, colors)
    for axes in (*measured, differences):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    measured[0].set_yticks(range(len(variants)), variants)
    measured[0].invert_yaxis()
    save_figure(figure, path)


def _draw_points(axes: Axes, rows: Sequence[Row], name: str, colors: dict[str, Any]) -> None:
    for place, (variant, of_variant) in enumerate(_by_variant(rows).items()):
        values = [row[name] for row in of_variant if row[name] is not None]
        if values:
            axes.plot(values, [place] * len(values), "o", color=colors[variant], markersize=6, alpha=0.65)
            axes.plot([statistics.fmean(values)] * 2, [place - 0.28, place + 0.28], color="black", linewidth=1.6)
    style_panel(axes, title=f"{name}: runs and their mean", x=name, y="")


def _draw_differences(axes: Axes, rows: Sequence[Row], base: str, colors: dict[str, Any]) -> None:
    found = {variant: paired_difference(rows, base, variant, "AP") for variant in colors if variant != base}
    shown = {variant: difference for variant, difference in found.items() if difference is not None}
    if not shown:
        say_nothing_to_show(axes, f"nothing to compare with {base}")
        return
    for variant, (mean, low, high) in shown.items():
        place = list(colors).index(variant)
        axes.plot(mean, place, "o", color=colors[variant], markersize=6)
        if not math.isinf(low):
            axes.plot([low, high], [place, place], color=colors[variant], linewidth=2)
    axes.axvline(0, color="0.5", linewidth=1)
    style_panel(axes, title=f"difference and its {CONFIDENCE:.0%} interval", x=f"AP minus that of {base}", y="")

"""What the figures share: colours, panels for one legend, and the file."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from dh_keras.files import replaced_file
from dh_keras.inference.drawing import class_colors
from dh_keras.inference.labels import drawable
from dh_keras.run.classes import class_labels

DPI = 110
GREY = "0.72"


def line_colors(count: int) -> list[tuple[float, float, float]]:
    """Colours 0..1 of the classes, those of the pictures, darkened where they would be pale on white."""
    colors = []
    for red, green, blue in class_colors(count):
        brightness = 0.299 * red + 0.587 * green + 0.114 * blue
        factor = min(1.0, 150 / brightness) / 255
        colors.append((red * factor, green * factor, blue * factor))
    return colors


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make a figure of some inches, with a title; drawn without a window system."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def style_panel(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Name a panel and its axes, and draw a light grid."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def say_nothing_to_show(axes: Axes, reason: str) -> None:
    """Write a sentence in the place of an empty panel."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=10, color="0.35", transform=axes.transAxes)


def plain_labels(names: Sequence[str]) -> list[str]:
    """Names of classes for matplotlib, see `class_labels`: none is a formula, and none hides itself from a legend."""
    labels = [drawable(label)[0].replace("$", r"\$") for label in class_labels(names)]
    return [f" {label}" if label.startswith("_") else label for label in labels]


def use_fonts_with_all_letters(figure: Figure) -> None:
    """Give the texts of a figure the fonts that have their letters, behind the usual one; call it before saving."""
    for text in figure.findobj(Text):
        path = drawable(text.get_text())[1]
        if path is not None:
            text.set_fontfamily([*text.get_fontfamily(), FontProperties(fname=path).get_name()])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, in the place of the one that may be there."""
    use_fonts_with_all_letters(figure)
    with replaced_file(path) as partial:
        figure.savefig(partial)

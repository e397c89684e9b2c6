"""Draw the figures of docs/how_it_works.md: `python docs/figures.py` writes docs/images/*.svg.

The paper's figures 1 and 2 as this package builds them; the names of the losses are those in metrics.csv.
"""

import hashlib
import itertools
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

IMAGES = Path(__file__).parent / "images"
INK = "#263238"
GREY, BLUE, ORANGE, GREEN = "#eceff1", "#bbdefb", "#ffe0b2", "#c8e6c9"
UNFOCUSED = (0, (4, 2.5))


def source_hash() -> str:
    """What a figure carries, so that a test can see whether it was drawn by this file as it is now."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def panel(axes: Axes, title: str, width: float, height: float) -> None:
    """Set a drawing up in units of text height."""
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")


def box(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float = 3.0,
    height: float = 1.1,
    color: str = GREY,
    size: float = 8,
) -> None:
    """A rounded box with text, centred on (x, y)."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.15"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=color, edgecolor=INK, linewidth=0.8))
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axes: Axes, *points: tuple[float, float], style: object = "-") -> None:
    """A line through the points with a head at its end."""
    for start, end in itertools.pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=INK, linewidth=0.9, linestyle=style)
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=8,
            shrinkA=0,
            shrinkB=0,
            color=INK,
            linewidth=0.9,
            linestyle=style,
        )
    )


def add_sign(axes: Axes, x: float, y: float, sign: str = "+") -> None:
    """A circle with an operation in it."""
    axes.add_patch(Circle((x, y), 0.42, facecolor="white", edgecolor=INK, linewidth=0.9))
    axes.text(x, y, sign, ha="center", va="center", fontsize=11, color=INK)


def head(axes: Axes, y: float, kind: str) -> float:
    """RoIAlign and a head in a row at height y; returns where its outputs start."""
    scale = "1.0" if kind == "fc" else "1.3"
    box(axes, 1.8, y, f"RoIAlign 7x7\nRoI x {scale}", width=3.2, height=1.5)
    if kind == "fc":
        parts = [("fc 1024", 2.6), ("fc 1024", 2.6)]
    else:
        parts = [("up-block\n256 to 1024", 2.9), ("K x (non-local,\nbottleneck)", 3.4), ("average\npool", 2.3)]
    color, right = (BLUE, 3.4) if kind == "fc" else (ORANGE, 3.4)
    for text, width in parts:
        arrow(axes, (right, y), (right + 0.7, y))
        box(axes, right + 0.7 + width / 2, y, text, width=width, height=1.5, color=color)
        right += 0.7 + width
    return right


def outputs(axes: Axes, right: float, y: float, solid: tuple[str, ...], dashed: tuple[str, ...] = ()) -> None:
    """The outputs of a head: solid arrows to its focused tasks, dashed ones to the others."""
    names = [name for name in ("class", "box") if name in (*solid, *dashed)]
    heights = {1: (0.0,), 2: (0.75, -0.75)}[len(names)]
    for name, shift in zip(names, heights, strict=True):
        style = "-" if name in solid else UNFOCUSED
        arrow(axes, (right, y), (right + 0.5, y), (right + 0.5, y + shift), (15.6, y + shift), style=style)
        box(axes, 16.6, y + shift, name, width=2.0, height=0.95, color=GREEN)


def draw_variants() -> Figure:
    """Figure 1: one head, and two heads with one task each or both."""
    figure = Figure(figsize=(8.4, 7.2), layout="constrained")
    rows = figure.subplots(4, 1, height_ratios=(3, 3, 6, 6))
    both = ("class", "box")
    panel(rows[0], "(a) single_fc: the FPN baseline", 24, 3)
    outputs(rows[0], head(rows[0], 1.5, "fc"), 1.5, both)
    panel(rows[1], "(b) single_conv", 24, 3)
    outputs(rows[1], head(rows[1], 1.5, "conv"), 1.5, both)
    panel(rows[2], "(c) double_head: the fc-head classifies, the conv-head localises", 24, 6)
    outputs(rows[2], head(rows[2], 4.4, "fc"), 4.4, ("class",))
    outputs(rows[2], head(rows[2], 1.6, "conv"), 1.6, ("box",))
    panel(rows[3], "(d) double_head_ext: each head learns the other task too (dashed)", 24, 6)
    extended = rows[3]
    outputs(extended, head(extended, 4.4, "fc"), 4.4, ("class",), ("box",))
    outputs(extended, head(extended, 1.3, "conv"), 1.3, ("box",), ("class",))
    arrow(extended, (17.6, 5.15), (21.2, 5.15), (21.2, 4.6))
    arrow(extended, (17.6, 2.05), (21.2, 2.05), (21.2, 2.6))
    box(extended, 21.2, 3.6, "score =\n1 - (1 - p_fc)\nx (1 - p_conv)", width=4.4, height=2.0, color="white")
    return figure


def draw_blocks() -> Figure:
    """Figure 2: the blocks of the conv-head; every convolution is followed by a batch norm."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    up, bottleneck, non_local = figure.subplots(1, 3, width_ratios=(10, 8.5, 14))
    draw_up_block(up)
    draw_bottleneck(bottleneck)
    draw_non_local(non_local)
    return figure


def draw_up_block(axes: Axes) -> None:
    """Residual block that takes 256 channels to 1024."""
    panel(axes, "(a) up-block", 10, 14)
    axes.text(3.2, 13.4, "7 x 7 x 256", ha="center", fontsize=8, color=INK)
    arrow(axes, (3.2, 13.1), (3.2, 11.3))
    box(axes, 3.2, 10.7, "3x3, 256, ReLU", width=4.4)
    arrow(axes, (3.2, 10.15), (3.2, 8.2))
    box(axes, 3.2, 7.6, "1x1, 1024", width=4.4)
    arrow(axes, (3.2, 7.05), (3.2, 4.42))
    arrow(axes, (3.2, 12.4), (7.9, 12.4), (7.9, 9.7))
    box(axes, 7.9, 9.15, "1x1, 1024", width=3.4)
    arrow(axes, (7.9, 8.6), (7.9, 4.0), (3.62, 4.0))
    add_sign(axes, 3.2, 4.0)
    arrow(axes, (3.2, 3.58), (3.2, 2.4))
    box(axes, 3.2, 1.85, "ReLU", width=2.2)
    arrow(axes, (3.2, 1.3), (3.2, 0.5))
    axes.text(3.2, 0.05, "7 x 7 x 1024", ha="center", fontsize=8, color=INK)


def draw_bottleneck(axes: Axes) -> None:
    """Residual block within 1024 channels."""
    panel(axes, "(b) bottleneck", 8.5, 14)
    axes.text(3.2, 13.4, "7 x 7 x 1024", ha="center", fontsize=8, color=INK)
    arrow(axes, (3.2, 13.1), (3.2, 11.5))
    for y, text in ((10.9, "1x1, 256, ReLU"), (8.7, "3x3, 256, ReLU"), (6.5, "1x1, 1024")):
        box(axes, 3.2, y, text, width=4.4)
        arrow(axes, (3.2, y - 0.55), (3.2, y - 1.65 if y > 7 else 4.42))
    arrow(axes, (3.2, 12.5), (7.2, 12.5), (7.2, 4.0), (3.62, 4.0))
    add_sign(axes, 3.2, 4.0)
    arrow(axes, (3.2, 3.58), (3.2, 2.4))
    box(axes, 3.2, 1.85, "ReLU", width=2.2)
    arrow(axes, (3.2, 1.3), (3.2, 0.5))
    axes.text(3.2, 0.05, "7 x 7 x 1024", ha="center", fontsize=8, color=INK)


def draw_non_local(axes: Axes) -> None:
    """Attention over the cells of an RoI."""
    panel(axes, "(c) non-local block, before each bottleneck", 14, 14)
    axes.text(5.0, 13.4, "7 x 7 x 1024", ha="center", fontsize=8, color=INK)
    arrow(axes, (5.0, 13.1), (5.0, 12.4))
    for x, name in ((1.7, "theta"), (5.0, "phi"), (8.3, "g")):
        if x != 5.0:
            axes.plot([5.0, x], [12.4, 12.4], color=INK, linewidth=0.9)
        arrow(axes, (x, 12.4), (x, 11.5))
        box(axes, x, 10.8, f"{name}\n1x1, 512", width=2.7, height=1.4, color=ORANGE)
    arrow(axes, (1.7, 10.1), (1.7, 8.6), (2.93, 8.6))
    arrow(axes, (5.0, 10.1), (5.0, 8.6), (3.77, 8.6))
    add_sign(axes, 3.35, 8.6, "x")
    axes.text(0.1, 7.35, "theta phi$^T$ / 49\n49 x 49, in 4 groups", ha="left", va="center", fontsize=7.5, color=INK)
    arrow(axes, (3.35, 8.18), (3.35, 6.2), (4.58, 6.2))
    arrow(axes, (8.3, 10.1), (8.3, 6.2), (5.42, 6.2))
    add_sign(axes, 5.0, 6.2, "x")
    arrow(axes, (5.0, 5.78), (5.0, 5.1))
    box(axes, 5.0, 4.5, "1x1, 1024, from zero", width=5.4)
    arrow(axes, (5.0, 3.95), (5.0, 3.32))
    arrow(axes, (5.0, 12.8), (11.9, 12.8), (11.9, 2.9), (5.42, 2.9))
    add_sign(axes, 5.0, 2.9)
    arrow(axes, (5.0, 2.48), (5.0, 1.95))
    box(axes, 5.0, 1.45, "ReLU", width=2.2, height=1.0)
    arrow(axes, (5.0, 0.95), (5.0, 0.45))
    axes.text(5.0, 0.02, "7 x 7 x 1024", ha="center", fontsize=8, color=INK)


def draw_stages() -> Figure:
    """The detector from the photograph to the detections."""
    figure = Figure(figsize=(11, 2.5), layout="constrained")
    axes = figure.subplots()
    panel(axes, "", 33, 7)
    steps = [("photograph", 2.0), ("backbone\nC2 to C5", 6.6), ("FPN\nP2 to P6", 11.0)]
    for text, x in steps:
        box(axes, x, 3.5, text, width=3.4, height=1.6)
    box(axes, 15.6, 1.5, "RPN", width=3.0, height=1.3)
    box(axes, 20.6, 1.5, "proposals\nbest 1000", width=3.6, height=1.6)
    box(axes, 25.2, 5.5, "fc-head", width=3.2, height=1.3, color=BLUE)
    box(axes, 25.2, 3.3, "conv-head", width=3.2, height=1.3, color=ORANGE)
    box(axes, 30.6, 4.4, "detections\nNMS by class,\nbest 100", width=4.0, height=2.2, color=GREEN)
    arrow(axes, (3.7, 3.5), (4.9, 3.5))
    arrow(axes, (8.3, 3.5), (9.3, 3.5))
    arrow(axes, (12.7, 3.2), (13.2, 3.2), (13.2, 1.5), (14.1, 1.5))
    arrow(axes, (17.1, 1.5), (18.8, 1.5))
    axes.plot([12.7, 22.4], [4.4, 4.4], color=INK, linewidth=0.9)
    arrow(axes, (20.6, 2.3), (20.6, 4.4))
    axes.text(17.6, 4.75, "RoIAlign", ha="center", fontsize=8, color=INK)
    arrow(axes, (22.4, 4.4), (22.9, 4.4), (22.9, 5.5), (23.6, 5.5))
    arrow(axes, (22.4, 4.4), (22.9, 4.4), (22.9, 3.3), (23.6, 3.3))
    arrow(axes, (26.8, 5.5), (27.6, 5.5), (27.6, 4.8), (28.6, 4.8))
    arrow(axes, (26.8, 3.3), (27.6, 3.3), (27.6, 4.0), (28.6, 4.0))
    return figure


FIGURES = {"stages": draw_stages, "variants": draw_variants, "blocks": draw_blocks}


def main() -> None:
    """Write every figure."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "dh_keras"
    for name, draw in FIGURES.items():
        path = IMAGES / f"{name}.svg"
        FigureCanvasSVG(draw()).print_svg(path, metadata={"Date": None, "Description": f"figures.py {source_hash()}"})
        print(path)


if __name__ == "__main__":
    main()

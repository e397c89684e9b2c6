"""Names of classes in pictures: whatever they are, they are drawn, and told apart."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from dh_keras.inference import labels
from dh_keras.inference.drawing import draw_boxes, side_by_side
from dh_keras.inference.labels import drawable, escape_markdown
from dh_keras.reports import confusion, plotting, pr_curves
from dh_keras.reports.confusion import draw_confusion
from dh_keras.reports.data_doctor.sheets import draw
from dh_keras.reports.pr_curves import Curve, draw_pr_curves
from dh_keras.run.classes import MAX_LETTERS, class_labels

NAMES = (
    *(
        "cell",
        "cell ",
        "",
        "two\nlines",
        "a\u200bb",
        "\u202eevil",
        "\x1b[31mred",
        "\ud800",
        "圆盘",
        "🍎",
        "שלום",
        "cafe\u0301",
    ),
    *("caf\u00e9", r"$\frac$", "price $ in $", "_hidden", r"\alpha^2_3", "<b>&amp;</b>", "x" * 300, "x" * 299 + "y"),
)


@pytest.fixture
def chinese_font(tmp_path, monkeypatch):
    """A font of this machine that has ASCII and the letters 圆盘, found as others are."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(point)
    pen.closePath()
    glyph = pen.glyph()
    letters = [chr(code) for code in range(32, 127)] + ["圆", "盘"]
    order = [".notdef", *(f"u{ord(letter):04X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):04X}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(order, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two Letters", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    path = tmp_path / "two_letters.ttf"
    builder.save(path)
    known = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(path)
    labels._font_files.cache_clear()
    labels._best_font.cache_clear()
    yield str(path)
    font_manager.fontManager.ttflist[:] = known
    labels._font_files.cache_clear()
    labels._best_font.cache_clear()


@pytest.fixture
def no_other_font(monkeypatch):
    """A machine with matplotlib's own font only."""
    own = labels._font_files()[:1]
    monkeypatch.setattr(labels, "_font_files", lambda: own)
    labels._best_font.cache_clear()
    yield
    labels._best_font.cache_clear()


def test_labels_are_short_lines_and_no_two_are_alike():
    shown = class_labels(NAMES)
    assert len(set(shown)) == len(NAMES)
    assert max(map(len, shown)) == MAX_LETTERS
    assert all(label.isprintable() for label in shown)
    assert shown[:7] == ["cell", "'cell '", "''", r"two\nlines", r"a\u200bb", r"\u202eevil", r"\x1b[31mred"]
    assert shown[11:13] == ["cafe\u0301 #12", "caf\u00e9 #13"]


def test_letters_that_no_font_has_become_their_code_points(no_other_font):
    assert drawable("cell 0.93") == ("cell 0.93", None)
    assert drawable("圆盘 0.93")[0] == r"\u5706\u76d8 0.93"
    text, font = drawable("Зонт 🍎")
    assert text == r"Зонт \U0001f34e"
    assert Path(font).name == "DejaVuSans.ttf"
    assert drawable("\ud800")[0] == r"\ud800"


def test_a_font_that_has_the_letters_is_used_by_pictures_and_figures(chinese_font, monkeypatch):
    assert drawable("圆盘 0.93") == ("圆盘 0.93", chinese_font)
    figures = keep_figures(monkeypatch)
    draw_confusion("none.png", np.eye(3, dtype=int), ["圆盘", "cell"], score=0.5)
    texts = {text.get_text(): text for text in figures[0].axes[0].get_yticklabels()}
    plotting.use_fonts_with_all_letters(figures[0])
    assert texts["圆盘"].get_fontfamily()[-1] == "Two Letters"
    assert "Two Letters" not in texts["cell"].get_fontfamily()


def keep_figures(monkeypatch):
    figures = []
    for module in (confusion, pr_curves):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.filterwarnings("error")
def test_no_name_ends_a_picture_or_a_figure(tmp_path):
    count = len(NAMES)
    draw_confusion(tmp_path / "confusion.png", np.eye(count + 1, dtype=int), NAMES, score=0.5)
    curve = Curve(np.array([0.9]), np.array([1.0]), np.array([0.8]))
    metrics = {"AP50": 0.8, "AP75": 0.8, "per_class": {name: {"AP50": 0.8, "AP75": 0.8} for name in NAMES}}
    draw_pr_curves(tmp_path / "pr.png", {iou: [curve] * count for iou in (0.5, 0.75)}, metrics, NAMES)
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    assert (tmp_path / "pr.png").stat().st_size > 10_000
    grey, boxes = np.full((640, 640, 3), 128, np.uint8), np.array([[100, 100, 500, 500]])
    drawn = [draw_boxes(grey, boxes, [label]).tobytes() for label in class_labels(NAMES)]
    assert len(set(drawn)) == count
    for name in NAMES:
        draw_boxes(grey, boxes, [name])
        side_by_side(grey, grey, (name, name))
        assert draw(grey, boxes, [name], NAMES).startswith("data:image/jpeg")


def test_dollars_are_text_and_an_underscore_hides_no_class_from_the_legend(monkeypatch):
    figures = keep_figures(monkeypatch)
    names = [r"$\frac$", "a $5 b $6", "_hidden"]
    curve = Curve(np.array([0.9]), np.array([1.0]), np.array([0.8]))
    metrics = {"AP50": 0.8, "AP75": 0.8, "per_class": {name: {"AP50": 0.8, "AP75": 0.8} for name in names}}
    draw_pr_curves("none.png", {iou: [curve] * 3 for iou in (0.5, 0.75)}, metrics, names)
    entries = figures[0].axes[0].get_legend().get_texts()
    shown = [entry._preprocess_math(entry.get_text()) for entry in entries][:3]
    assert shown == [(r"$\frac$ 0.800", False), ("a $5 b $6 0.800", False), (" _hidden 0.800", False)]


def test_names_are_text_in_markdown():
    assert escape_markdown("a|b *c*\n$d$ &lt;\x1b") == r"a\|b \*c\* \$d\$ \&lt;\\x1b"

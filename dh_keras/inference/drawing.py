"""Pictures of boxes: detections with names and scores, and two pictures side by side. Pillow only.

Text must be readable at any image size: small images are enlarged by a whole factor first, the font grows with
large ones, and every label stands on a strip of its class's colour that stays inside the picture.
"""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dh_keras.errors import visible
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.inference.labels import drawable, load_font
from dh_keras.run.classes import class_labels

MIN_LONG_SIDE = 640  # smaller pictures are enlarged by the least whole factor that reaches this

Color = tuple[int, int, int]

# Far apart in hue or lightness, in the order in which classes take them.
_PALETTE: tuple[Color, ...] = (
    (230, 50, 60),
    (40, 170, 75),
    (50, 105, 235),
    (255, 200, 20),
    (165, 60, 200),
    (30, 200, 215),
    (245, 130, 35),
    (235, 95, 190),
    (135, 90, 50),
    (150, 220, 60),
    (20, 110, 105),
    (125, 20, 40),
)
_NEUTRAL: Color = (40, 40, 40)


def class_colors(count: int) -> list[Color]:
    """Give each class its own colour: a fixed palette first, then hues in golden-ratio steps.

    Args:
        count: number of classes.

    Returns:
        RGB tuples in 0..255; a class keeps its colour when classes are added behind it.
    """
    colors = list(_PALETTE[:count])
    for index in range(len(colors), count):
        hue = (index * 0.618034) % 1.0
        value, saturation = (0.95, 0.65, 0.8)[index % 3], (0.6, 0.9)[index % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colors


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    *,
    colors: Sequence[Color] | None = None,
    note: str | None = None,
) -> np.ndarray:
    """Draw boxes with a label each.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes: float [N, 4], (y1, x1, y2, x2) in pixels of `image`; parts outside are cut off. Later ones lie on top.
        labels: N texts; an empty one draws the box alone.
        colors: N RGB colours in 0..255; None draws all in the first class colour.
        note: a line of text across the top.

    Returns:
        uint8 [F * H, F * W, 3], a copy; F is the whole factor that brings the long side to 640 pixels or more.

    Raises:
        ValueError: when image, boxes, labels and colours do not fit together.
    """
    _check_image(image, "image")
    boxes = np.asarray(boxes, np.float64)
    colors = [_PALETTE[0]] * len(labels) if colors is None else colors
    if boxes.shape != (len(labels), 4) or len(colors) != len(labels):
        got = f"boxes {list(boxes.shape)}, {len(labels)} labels, {len(colors)} colours"
        raise ValueError(f"boxes: expected [N, 4] with N labels and N colours, got {got}")
    if not np.isfinite(boxes).all():
        raise ValueError(f"boxes: expected finite numbers, got {boxes[~np.isfinite(boxes).all(1)][0].tolist()}")
    height, width = image.shape[:2]
    factor = max(1, math.ceil(MIN_LONG_SIDE / max(height, width)))
    picture = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    _Sheet(picture).draw(boxes * factor, labels, colors, note)
    return np.asarray(picture)


def draw_detections(
    image: np.ndarray, detections: ImageDetections, *, score_threshold: float | Sequence[float] = 0.5
) -> np.ndarray:
    """Draw the detections above a score, the best on top; when there is none, say so and name the best.

    Args:
        image: uint8 [H, W, 3], RGB.
        detections: in pixels of `image`.
        score_threshold: those that score more than this are drawn; one for all or one for each class.

    Returns:
        See `draw_boxes`.

    Raises:
        ValueError: see `draw_boxes`.
    """
    boxes, scores, classes = detections.boxes, detections.scores, detections.classes
    if not len(boxes) == len(scores) == len(classes):
        got = f"{len(boxes)} boxes, {len(scores)} scores, {len(classes)} classes"
        raise ValueError(f"detections: expected as many boxes as scores and classes, got {got}")
    shown = detections.above(score_threshold)
    order = np.argsort(shown.scores, kind="stable")
    names, palette = class_labels([one.name for one in detections.known]), class_colors(len(detections.known))
    note = None
    if not len(order):
        note = f"no detection above {describe_score(score_threshold)}"
        if len(scores):
            best = int(np.argmax(scores))
            note += f" (best: {names[classes[best]]} {scores[best]:.2f})"
    return draw_boxes(
        image,
        shown.boxes[order],
        [f"{names[shown.classes[index]]} {shown.scores[index]:.2f}" for index in order],
        colors=[palette[shown.classes[index]] for index in order],
        note=note,
    )


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write pixels uint8 [H, W, 3], RGB, as PNG, JPEG or WebP by the ending of the name."""
    # Pillow's own level for PNG, 6, takes five times as long for files a sixth smaller. Its own way with the colours of
    # a JPEG, one for four pixels, blurs letters.
    Image.fromarray(picture).save(path, compress_level=1, quality=95, subsampling=0)


def describe_score(score: float | Sequence[float]) -> str:
    """A score, or the scores of the classes, in words."""
    lowest, highest = (score, score) if np.isscalar(score) else (min(score), max(score))
    return f"{lowest:.2f}" if lowest == highest else f"the best of its class ({lowest:.2f} to {highest:.2f})"


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Put two pictures next to each other under their titles, such as detections beside the ground truth.

    Args:
        left: uint8 [H, W, 3].
        right: uint8 [H, W, 3], may be of another size; the smaller one is padded below.
        titles: one for each.

    Returns:
        uint8 [H, W, 3] that holds both at their own size.

    Raises:
        ValueError: when one of them is no uint8 [H, W, 3] image.
    """
    for picture, name in ((left, "left"), (right, "right")):
        _check_image(picture, name)
    height, gap = max(left.shape[0], right.shape[0]), 8
    size = _font_size(max(left.shape[:2] + right.shape[:2]), height)
    texts = [_fit(title, size, picture.shape[1] - 8) for title, picture in zip(titles, (left, right), strict=True)]
    strip = math.ceil(max(_text_height(font) for _, font in texts) * 1.5)
    sheet = Image.new("RGB", (left.shape[1] + gap + right.shape[1], strip + height), "white")
    pen = ImageDraw.Draw(sheet)
    for picture, start, (text, font) in ((left, 0, texts[0]), (right, left.shape[1] + gap, texts[1])):
        sheet.paste(Image.fromarray(picture), (start, strip))
        pen.text((start + 4, strip / 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(sheet)


class _Sheet:
    """A picture that is drawn on, with the places that labels already take."""

    def __init__(self, picture: Image.Image):
        self.pen = ImageDraw.Draw(picture)
        self.width, self.height = picture.size
        self.font_size = _font_size(max(picture.size), min(picture.size))
        self.line = max(2, round(max(picture.size) / 400))
        self.taken: list[tuple[float, float, float, float]] = []

    def draw(self, boxes: np.ndarray, labels: Sequence[str], colors: Sequence[Color], note: str | None) -> None:
        """Draw all outlines, then all labels, so that no outline crosses a text."""
        frame = np.array([self.height, self.width, self.height, self.width])
        boxes = np.clip(boxes, 0, frame).tolist()
        for (y1, x1, y2, x2), color in zip(boxes, colors, strict=True):
            # A box ends where its last pixel ends; Pillow names that pixel.
            corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
            self.pen.rectangle(corners, outline=tuple(color), width=self.line)
        if note:
            self._write(*self._fit(note), _NEUTRAL, [(0, 0)])
        # The topmost box picks the place of its label first.
        for (y1, x1, y2, x2), label, color in reversed(list(zip(boxes, labels, colors, strict=True))):
            if label:
                text, font = self._fit(label)
                strip = _text_height(font) + 4
                self._write(text, font, color, [(x1, y1 - strip), (x1, y2), (x1, y1), (x2, y1), (x1, y2 - strip)])

    def _fit(self, text: str) -> tuple[str, ImageFont.FreeTypeFont]:
        return _fit(text, self.font_size, self.width - 6)

    def _write(self, text: str, font: ImageFont.FreeTypeFont, color: Color, places: list[tuple[float, float]]) -> None:
        """Write on a strip at the first (x, y) that is free, or at the first one; never beyond the border."""
        width, height = font.getlength(text) + 6, _text_height(font) + 4
        strips = []
        for x, y in places:
            x, y = max(0, min(x, self.width - width)), max(0, min(y, self.height - height))
            strips.append((x, y, x + width, y + height))
        strip = next((one for one in strips if not any(_overlap(one, other) for other in self.taken)), strips[0])
        self.taken.append(strip)
        x1, y1, x2, y2 = strip
        self.pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=tuple(color))
        brightness = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
        ink = "black" if brightness > 140 else "white"
        self.pen.text((x1 + 3, (y1 + y2) / 2), text, fill=ink, font=font, anchor="lm")


def _check_image(image: np.ndarray, name: str) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"{name}: expected a uint8 array [H, W, 3], got {got}")
    if 0 in image.shape:
        raise ValueError(f"{name}: expected at least one pixel, got {list(image.shape)}")


def _font_size(long_side: int, short_side: int) -> int:
    return max(10, min(max(13, round(long_side / 50)), short_side // 5))


def _text_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _fit(text: str, size: int, width: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text in one line, cut and marked so where it is wider than its place, and a font that has its letters."""
    text, path = drawable(visible(" ".join(str(text).split())))
    font = load_font(path, size)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "...", font


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""One picture of the embedded dataset: shapes of three classes on a textured background.

Three classes differ by outline and tend to a hue each; shapes are turned by up to 30 degrees and stretched by up to a
quarter. Textures come from the same ranges for every class, backgrounds are clouded, striped and specked greys, sizes
span a factor of ten, shapes cover each other, cross the border and are mixed with strokes of any colour that belong to
no class. Of every 16 images one is empty and one holds a crowd. Image i depends on (seed, split, i) alone. A change of
any pixel raises `shapes.GENERATOR_VERSION`.

Letters: H, W image size in pixels; h, w size of the window around a shape.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from dh_keras.data.shape_textures import background, texture, vivid_color

# Category ids with gaps, as in COCO itself.
CATEGORIES = {1: "circle", 3: "square", 7: "triangle"}
# Mean hue of each class; strokes have any.
HUES = {"circle": 0.02, "square": 0.34, "triangle": 0.63}
SPLITS = ("train", "val")
SIZE_RANGE = (14.0, 140.0)  # long side of a shape's box in pixels: log-normal, clipped to this
SIZE_MEDIAN, SIZE_SPREAD = 44.0, 0.55  # its median, and its deviation in log units
MAX_TURN = math.pi / 6  # shapes are turned by up to this many radians either way
CROWD_SIZE_RANGE = (6.0, 9.0)
MAX_HIDDEN = 0.4  # a shape that is covered or cut off by more than this share is not annotated

_PERIOD, _EMPTY, _CROWD = 16, 7, 11  # index % _PERIOD of the empty images and of those with a crowd
_SUPERSAMPLING = 4


@dataclass
class DrawnShape:
    """One shape (or crowd of shapes) on the canvas.

    Args:
        category_id: key of `CATEGORIES`.
        box: (y1, x1, y2, x2) in pixels, tight around the whole outline, covered parts included, clipped to the image.
        visible: float32 [H, W] in 0..1, share of each pixel that shows this shape.
        full_area: pixels of the whole shape, covered and cut-off parts included.
        crowd: whether it stands for many small shapes of one class.
    """

    category_id: int
    box: tuple[float, float, float, float]
    visible: np.ndarray
    full_area: float
    crowd: bool = False

    @property
    def area(self) -> float:
        """Visible pixels, which is what COCO calls the area of an object."""
        return float(self.visible.sum())

    @property
    def recognisable(self) -> bool:
        """Whether enough of it shows for an annotation."""
        return self.area >= (1 - MAX_HIDDEN) * self.full_area


@dataclass
class ShapesImage:
    """One picture and what is annotated on it.

    Args:
        pixels: uint8 [H, W, 3], RGB.
        shapes: in drawing order, lowest first.
    """

    pixels: np.ndarray
    shapes: list[DrawnShape] = field(default_factory=list)


def draw_image(*, seed: int, split: str, index: int) -> ShapesImage:
    """Draw one picture.

    Args:
        seed: of the dataset.
        split: "train" or "val".
        index: 0-based position in the split; index % 16 == 7 is empty, index % 16 == 11 has a crowd.

    Returns:
        Pixels and the shapes that are at least 60 percent visible.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _Canvas(rng, *_image_size(rng))
    for _ in range(rng.integers(0, 5)):
        canvas.add_stroke()
    if index % _PERIOD != _EMPTY:
        for _ in range(rng.integers(1, 9)):
            canvas.add_shape()
    if index % _PERIOD == _CROWD:
        canvas.add_crowd()  # last, so that nothing covers it
    return canvas.finish()


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width: landscape, portrait, or odd and nearly square."""
    kind = rng.random()
    if kind < 0.4:
        return 192, 256
    if kind < 0.7:
        return 256, 192
    height, width = rng.integers(184, 250, size=2)
    return int(height), int(width)


class _Canvas:
    """A picture in the making: float pixels and the shapes drawn so far."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.pixels = background(rng, height, width)
        self.shapes: list[DrawnShape] = []

    def add_stroke(self) -> None:
        """Draw a line or a plus sign, which belong to no class."""
        rng = self.rng
        length, thickness, angle = rng.uniform(8, 45), rng.uniform(1.5, 4.0), rng.uniform(0, math.pi)
        bars = [_turn(_rectangle(length, thickness), angle)]
        if rng.random() < 0.4:
            bars.append(_turn(bars[0], math.pi / 2))
        centre = rng.uniform((0, 0), (self.height, self.width))
        alpha, top, left = _rasterise([bar + centre for bar in bars])
        window = self._clip(alpha, top, left)
        self._paint(*window, hue=rng.random(), minimum_contrast=40.0)

    def add_shape(self) -> None:
        """Draw one shape of a random class, preferring a place that does not hide an earlier shape."""
        rng = self.rng
        category_id = int(rng.choice(list(CATEGORIES)))
        outer = _outline(rng, CATEGORIES[category_id], _size(rng))
        cut_off = rng.random() < 0.15
        for _ in range(8):
            centre = self._place(np.ptp(outer, axis=0), cut_off=cut_off)
            alpha, top, left = _rasterise([outer + centre])
            window = self._clip(alpha, top, left)
            cut_away = 1 - window[0].sum() / alpha.sum()
            if cut_away <= MAX_HIDDEN and not self._would_hide(*window):
                break
        hue = HUES[CATEGORIES[category_id]]
        self._paint(*window, hue=hue, minimum_contrast=90.0 if rng.random() < 0.9 else 60.0)
        self._record(category_id, outer + centre, *window, full_area=float(alpha.sum()))

    def add_crowd(self) -> None:
        """Draw many tiny shapes of one class close together, recorded as one."""
        rng = self.rng
        category_id = int(rng.choice(list(CATEGORIES)))
        spread = rng.uniform(18, 40, size=2)
        middle = self._place(2 * spread + 2 * CROWD_SIZE_RANGE[1], cut_off=False)
        covered = np.zeros((self.height, self.width), np.float32)
        points = []
        for _ in range(int(rng.integers(18, 36))):
            outer = _outline(rng, CATEGORIES[category_id], rng.uniform(*CROWD_SIZE_RANGE))
            angle, radius = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
            centre = middle + spread * radius * np.array([math.sin(angle), math.cos(angle)])
            alpha, rows, columns = self._clip(*_rasterise([outer + centre]))
            self._paint(alpha, rows, columns, hue=HUES[CATEGORIES[category_id]], minimum_contrast=75.0)
            covered[rows, columns] = np.maximum(covered[rows, columns], alpha)
            points.append(outer + centre)
        everywhere = (covered, slice(0, self.height), slice(0, self.width))
        self._record(category_id, np.concatenate(points), *everywhere, full_area=float(covered.sum()), crowd=True)

    def finish(self) -> ShapesImage:
        """Add sensor noise and keep the shapes that can be seen."""
        noise = self.rng.standard_normal(self.pixels.shape, dtype=np.float32) * self.rng.uniform(0, 5)
        pixels = np.clip(self.pixels + noise + 0.5, 0, 255).astype(np.uint8)
        return ShapesImage(pixels, [shape for shape in self.shapes if shape.recognisable])

    def _place(self, extent: np.ndarray, *, cut_off: bool) -> np.ndarray:
        """Choose a centre: inside, or with a tenth to four tenths of one side beyond the border."""
        size = np.array([self.height, self.width], float)
        centre = self.rng.uniform(extent / 2, size - extent / 2)
        if cut_off:
            axis, beyond = self.rng.integers(2), self.rng.uniform(0.1, 0.4)
            inset = (0.5 - beyond) * extent[axis]
            centre[axis] = inset if self.rng.random() < 0.5 else size[axis] - inset
        return centre

    def _clip(self, alpha: np.ndarray, top: int, left: int) -> tuple[np.ndarray, slice, slice]:
        """Cut a mask to the image: the rest of the mask, and the rows and columns it covers."""
        rows = slice(max(top, 0), max(0, min(top + alpha.shape[0], self.height)))
        columns = slice(max(left, 0), max(0, min(left + alpha.shape[1], self.width)))
        return alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left], rows, columns

    def _would_hide(self, alpha: np.ndarray, rows: slice, columns: slice) -> bool:
        for shape in self.shapes:
            left_over = shape.area - float((shape.visible[rows, columns] * alpha).sum())
            if shape.recognisable and left_over < (1 - MAX_HIDDEN) * shape.full_area:
                return True
        return False

    def _paint(self, alpha: np.ndarray, rows: slice, columns: slice, *, hue: float, minimum_contrast: float) -> None:
        """Blend a texture in that stands out from what is under it."""
        under = self.pixels[rows, columns]
        if not alpha.any():
            return
        mean = (under * alpha[..., None]).sum((0, 1)) / alpha.sum()
        for _ in range(20):
            color = vivid_color(self.rng, hue)
            if np.linalg.norm(color - mean) >= minimum_contrast:
                break
        filled = texture(self.rng, *alpha.shape, color)
        self.pixels[rows, columns] = under + alpha[..., None] * (filled - under)

    def _record(self, category_id, points, alpha, rows, columns, *, full_area: float, crowd: bool = False) -> None:
        for shape in self.shapes:
            shape.visible[rows, columns] *= 1 - alpha
        visible = np.zeros((self.height, self.width), np.float32)
        visible[rows, columns] = alpha
        size = (self.height, self.width)
        (y1, x1), (y2, x2) = np.clip(points.min(0), 0, size).tolist(), np.clip(points.max(0), 0, size).tolist()
        self.shapes.append(DrawnShape(category_id, (y1, x1, y2, x2), visible, full_area, crowd))


def _size(rng: np.random.Generator) -> float:
    return float(np.clip(SIZE_MEDIAN * math.exp(SIZE_SPREAD * rng.standard_normal()), *SIZE_RANGE))


def _outline(rng: np.random.Generator, name: str, size: float) -> np.ndarray:
    """Corners (y, x) of a stretched, turned shape; the middle of its box is 0, the box's long side `size`."""
    outer = _regular_polygon({"circle": 64, "square": 4, "triangle": 3}[name])
    stretch = np.array([1.0, rng.uniform(0.8, 1.25)])
    if name == "square":  # stretch along the sides, so that the angles stay right
        outer = _turn(outer, math.pi / 4)
    angle = rng.uniform(-MAX_TURN, MAX_TURN)
    outer = _turn(outer * stretch, angle)
    return (outer - (outer.min(0) + outer.max(0)) / 2) * (size / np.ptp(outer, axis=0).max())


def _regular_polygon(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def _rectangle(length: float, thickness: float) -> np.ndarray:
    return np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * (thickness / 2, length / 2)


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    sine, cosine = math.sin(angle), math.cos(angle)
    return points @ np.array([[cosine, -sine], [sine, cosine]])


def _rasterise(filled: list[np.ndarray]) -> tuple[np.ndarray, int, int]:
    """Draw polygons at four times the resolution and average.

    Args:
        filled: polygons (y, x) in pixels of the image, may lie outside of it.

    Returns:
        Coverage float32 [h, w] in 0..1 of a window around the polygons, and the window's top and left in the image.
    """
    points = np.concatenate(filled)
    top, left = np.floor(points.min(0)).astype(int).tolist()
    bottom, right = np.ceil(points.max(0)).astype(int).tolist()
    mask = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    for polygon in filled:
        # Pillow puts a pixel's centre on the integer; ours lies half a pixel further.
        fine = (polygon - (top, left)) * _SUPERSAMPLING - 0.5
        pen.polygon([(x, y) for y, x in fine.tolist()], fill=255)
    return np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / 255, top, left

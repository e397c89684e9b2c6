"""The embedded dataset: pictures of drawn shapes in COCO format, so that everything runs without a download.

Three classes differ by outline and tend to a hue each; shapes are turned by up to 30 degrees and stretched by up to a
quarter. Textures come from the same ranges for every class, backgrounds are clouded, striped and specked greys, sizes
span a factor of ten, shapes cover each other, cross the border and are mixed with strokes of any colour that belong to
no class. Of every 16 images one is empty and one holds a crowd. Image i depends on (seed, split, i) alone.

Shape letters: H, W image size in pixels; h, w size of the window around a shape.
"""

import colorsys
import json
import math
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dh_keras.errors import DataError

# Raise this when the same seed would give other images: a folder of another version is then not reused.
GENERATOR_VERSION = 1

# Category ids with gaps, as in COCO itself.
CATEGORIES = {1: "circle", 3: "square", 7: "triangle"}
# Mean hue of each class; colours of two classes overlap in their tails, and strokes have any hue.
HUES = {"circle": 0.02, "square": 0.34, "triangle": 0.63}
HUE_SPREAD = 0.07
SPLITS = ("train", "val")
SIZE_RANGE = (14.0, 140.0)  # long side of a shape's box in pixels: log-normal, clipped to this
SIZE_MEDIAN, SIZE_SPREAD = 44.0, 0.55  # its median, and its deviation in log units
MAX_TURN = math.pi / 6  # shapes are turned by up to this many radians either way
CROWD_SIZE_RANGE = (6.0, 9.0)
MAX_HIDDEN = 0.4  # a shape that is covered or cut off by more than this share is not annotated

_SETTINGS_FILE = "shapes.json"
_PERIOD, _EMPTY, _CROWD = 16, 7, 11  # index % _PERIOD of the empty images and of those with a crowd
_SUPERSAMPLING = 4
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ShapesPaths:
    """Where `write_shapes` put the two splits; the names are those of the config's `data` keys.

    Args:
        train_annotations: COCO JSON of the training split.
        train_images: folder of its images.
        val_annotations: COCO JSON of the validation split.
        val_images: folder of its images.
    """

    train_annotations: Path
    train_images: Path
    val_annotations: Path
    val_images: Path


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


def write_shapes(directory: str | Path, *, train_images: int, val_images: int, seed: int) -> ShapesPaths:
    """Write the dataset into a folder, or reuse the one that is there.

    The folder appears complete or not at all: images are drawn into a hidden folder beside it, which is then renamed.

    Args:
        directory: the dataset's folder; its parents are created.
        train_images: number of training images, at least 1.
        val_images: number of validation images, at least 1.
        seed: at least 0; the same seed gives the same bytes.

    Returns:
        The paths of annotations and images of both splits.

    Raises:
        DataError: when the folder holds a dataset with other settings or something else, or cannot be written.
        ValueError: when a number is out of range.

    Example:
        >>> paths = write_shapes("data/shapes", train_images=400, val_images=100, seed=1)  # doctest: +SKIP
    """
    for name, value, least in (("train_images", train_images, 1), ("val_images", val_images, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value}")
    directory = Path(directory)
    settings = {"version": GENERATOR_VERSION, "train_images": train_images, "val_images": val_images, "seed": seed}
    if not _holds_dataset(directory, settings):
        try:
            _write_atomically(directory, settings)
        except OSError as error:
            raise DataError(f"shapes folder {directory}: cannot be written: {error}; {_REMEDY}") from error
    annotations = directory / "annotations"
    return ShapesPaths(
        train_annotations=annotations / "instances_train.json",
        train_images=directory / "train",
        val_annotations=annotations / "instances_val.json",
        val_images=directory / "val",
    )


_REMEDY = "set data.shapes.directory to another folder"


def _holds_dataset(directory: Path, settings: dict) -> bool:
    """Whether the folder already holds exactly this dataset; refuse a folder that holds anything else."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise DataError(f"shapes folder {directory}: expected a folder, found a file; {_REMEDY}")
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return False
    if _SETTINGS_FILE not in names:
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise DataError(f"shapes folder {directory}: holds other files ({found}), nothing was written; {_REMEDY}")
    try:
        existing = dict(json.loads((directory / _SETTINGS_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"shapes folder {directory}: cannot read {_SETTINGS_FILE} ({error}); {_REMEDY}") from error
    different = [
        f"{key} {existing.get(key)} (wanted {value})" for key, value in settings.items() if existing.get(key) != value
    ]
    if different:
        raise DataError(f"shapes folder {directory}: holds a dataset with {', '.join(different)}; {_REMEDY}")
    needed = [f"annotations/instances_{split}.json" for split in SPLITS] + list(SPLITS)
    missing = [name for name in needed if not (directory / name).exists()]
    if missing:
        raise DataError(f"shapes folder {directory}: {', '.join(missing)} is missing; delete the folder to redraw it")
    return True


def _write_atomically(directory: Path, settings: dict) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.parent / f".{directory.name}.{uuid.uuid4().hex}.part"
    building.mkdir()
    try:
        (building / "annotations").mkdir()
        for split in SPLITS:
            _write_split(building, split, settings[f"{split}_images"], settings["seed"])
        (building / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        try:
            building.rename(directory)
        except OSError:
            # Another process of the same job was faster; its dataset is as good as this one.
            if not _holds_dataset(directory, settings):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_split(root: Path, split: str, count: int, seed: int) -> None:
    (root / split).mkdir()

    def write_image(index: int) -> tuple[dict, list[dict]]:
        image = draw_image(seed=seed, split=split, index=index)
        name = f"{index + 1:06d}.jpg"
        Image.fromarray(image.pixels).save(root / split / name, quality=_JPEG_QUALITY)
        height, width = image.pixels.shape[:2]
        entry = {"id": index + 1, "file_name": name, "width": width, "height": height}
        return entry, [_coco_annotation(shape, image_id=index + 1) for shape in image.shapes]

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        written = list(pool.map(write_image, range(count)))
    annotations = [annotation for _, of_image in written for annotation in of_image]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    tree = {
        "info": {"description": f"generated shapes, {split} split, seed {seed}, generator version {GENERATOR_VERSION}"},
        "categories": [{"id": key, "name": name, "supercategory": "shape"} for key, name in CATEGORIES.items()],
        "images": [entry for entry, _ in written],
        "annotations": annotations,
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree), encoding="utf-8")


def _coco_annotation(shape: DrawnShape, *, image_id: int) -> dict:
    y1, x1, y2, x2 = shape.box
    return {
        "id": 0,
        "image_id": image_id,
        "category_id": shape.category_id,
        "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(shape.area, 2),
        "iscrowd": int(shape.crowd),
    }


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
        self.pixels = _background(rng, height, width)
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
            colour = _vivid_colour(self.rng, hue)
            if np.linalg.norm(colour - mean) >= minimum_contrast:
                break
        texture = _texture(self.rng, *alpha.shape, colour)
        self.pixels[rows, columns] = under + alpha[..., None] * (texture - under)

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


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float, channels: int = 3) -> np.ndarray:
    """Random float32 [H, W, channels] in about -1..1 that varies over `cell` pixels."""
    rows, columns = math.ceil(height / cell) + 1, math.ceil(width / cell) + 1
    grid = rng.integers(0, 256, size=(rows, columns, 3), dtype=np.uint8)
    fine = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(fine, np.float32)[..., :channels] - 127.5) / 127.5


def _waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Parallel stripes, float32 [H, W, 1] in -1..1, hard or soft."""
    angle, length = rng.uniform(0, math.pi), rng.uniform(4, 24)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    wave = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * (2 * math.pi / length) + rng.uniform(0, 6))
    return np.clip(wave * rng.choice([1.0, 6.0]), -1, 1)[..., None].astype(np.float32)


def _vivid_colour(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A saturated colour around a hue, float [3] in 0..255; backgrounds are nearly grey."""
    hue, saturation, value = hue + HUE_SPREAD * rng.standard_normal(), rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)) * 255


def _texture(rng: np.random.Generator, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """Fill float32 [h, w, 3] around a mean colour: plain, shaded, striped or blotched, for every class alike."""
    contrast = rng.uniform(-20, 20, size=3).astype(np.float32)
    kind = rng.integers(4)
    if kind == 0:
        pattern = np.zeros((height, width, 1), np.float32)
    elif kind == 1:
        angle = rng.uniform(0, 2 * math.pi)
        rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        pattern = (rows * math.sin(angle) + columns * math.cos(angle))[..., None].astype(np.float32)
    elif kind == 2:
        pattern = _waves(rng, height, width)
    else:
        pattern = _smooth_noise(rng, height, width, rng.uniform(3, 12), channels=1)
    return colour.astype(np.float32) + contrast * pattern


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float32 [H, W, 3]: a colour with clouds of several sizes, a gradient, and sometimes stripes and specks."""
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = rng.uniform(60, 195) + rng.uniform(-18, 18, size=3)
    strength = rng.uniform(0.4, 1.0)
    for cell, amplitude in ((150, 24), (60, 16), (24, 8), (8, 5)):
        pixels += _smooth_noise(rng, height, width, cell) * (strength * amplitude)
    slope = rng.uniform(-20, 20, size=(2, 3)).astype(np.float32)
    pixels += np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * slope[0]
    pixels += np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * slope[1]
    if rng.random() < 0.4:
        pixels += _waves(rng, height, width) * rng.uniform(-12, 12, size=3).astype(np.float32)
    if rng.random() < 0.4:
        count = int(rng.integers(50, 400))
        rows, columns = rng.integers(0, height - 1, count), rng.integers(0, width - 1, count)
        specks = rng.uniform(-40, 40, size=(count, 3)).astype(np.float32)
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            pixels[rows + down, columns + right] += specks
    return np.clip(pixels, 0, 255)

"""Every image file decoded once, in parallel processes: what is wrong with it, and what later checks need of it.

Letters: N images, n boxes of one image.
"""

import functools
import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from dh_keras.data.image_opening import open_image
from dh_keras.data.images import EXIF_WINDOW, read_exif_orientation, upright_frame
from dh_keras.errors import one_line
from dh_keras.paths import open_binary, to_path
from dh_keras.reports.data_doctor.duplicates import THUMBNAIL

_FORMATS = ("JPEG", "MPO", "PNG")
_EXTENSIONS = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png",)}
_FLIPS = Image.Transpose
# What makes an image of each EXIF orientation upright.
_TURNS = {
    2: _FLIPS.FLIP_LEFT_RIGHT,
    3: _FLIPS.ROTATE_180,
    4: _FLIPS.FLIP_TOP_BOTTOM,
    5: _FLIPS.TRANSPOSE,
    6: _FLIPS.ROTATE_270,
    7: _FLIPS.TRANSVERSE,
    8: _FLIPS.ROTATE_90,
}
_FETCH = 2**20  # bytes of an image of another file system
_PARALLEL_FROM = 64  # fewer images are decoded before the processes have started


@dataclass
class FileFacts:
    """What decoding told about a file.

    Args:
        error: (kind of finding, message) for a file that training cannot use.
        notes: (kind, message) for what is only worth knowing.
        size: (height, width) of the upright image in pixels, the frame of the boxes; None if it cannot be decoded.
        stored_size: (height, width) as stored.
        orientation: EXIF orientation that is applied, 1..8.
        thumbnail: uint8[S, S], grey.
        colors: float32[n, 3], mean RGB in 0..255 of every box, NaN for one without area.
    """

    error: tuple[str, str] | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    stored_size: tuple[int, int] | None = None
    orientation: int = 1
    thumbnail: np.ndarray | None = None
    colors: np.ndarray | None = None


def examine_files(tasks: list[tuple[str, tuple[int, int] | None, np.ndarray]], *, label: str) -> list[FileFacts]:
    """Decode every file once.

    Args:
        tasks: (path, declared (height, width) or None, float64[n, 4] boxes y1 x1 y2 x2 in pixels).
        label: of the progress bar.

    Returns:
        Facts in the order of the tasks.
    """
    bar = functools.partial(tqdm, desc=label, total=len(tasks), unit=" images", leave=False, disable=None)
    if len(tasks) < _PARALLEL_FROM:
        return list(bar(map(_examine_file, tasks)))
    # Forking a process that has threads, as TensorFlow's, can hang.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(bar(pool.map(_examine_file, tasks, chunksize=16)))


def _examine_file(task: tuple[str, tuple[int, int] | None, np.ndarray]) -> FileFacts:
    path, declared, boxes = task
    if not to_path(path).is_file():
        return FileFacts(error=("missing_file", f"{path}: no such file"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on files that decode all the same
        frame = upright_frame(path, declared)  # from the header, as training reads it; or what is wrong with it
        return _decode(path, frame.removeprefix("image ") if isinstance(frame, str) else frame, boxes)


def _decode(path: str, frame: tuple[tuple[int, int], int] | str, boxes: np.ndarray) -> FileFacts:
    try:
        with open_binary(path, block_size=_FETCH) as file, open_image(file) as image:
            if image.format not in _FORMATS:
                return FileFacts(error=("unsupported_format", frame))
            image.load()
            file.seek(0)
            head = file.read(EXIF_WINDOW)
            orientation = read_exif_orientation(head)
            notes = _notes(path, image, head, orientation)
            facts = FileFacts(stored_size=(image.height, image.width), notes=notes)
            if isinstance(frame, str):
                facts.error = ("wrong_size", frame)
                facts.size = facts.stored_size[:: -1 if orientation >= 5 else 1]
                return facts
            facts.size, facts.orientation = frame
            pixels = upright_pixels(image, facts.orientation)
    except Exception as error:  # Pillow raises many types on broken files
        reason = frame if isinstance(frame, str) else f"{path}: cannot be decoded ({one_line(error)})"
        return FileFacts(error=("unreadable_file", reason))
    grey = Image.fromarray(pixels).convert("L")
    facts.thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    facts.colors = np.array([_mean_color(pixels, box) for box in boxes], np.float32).reshape(-1, 3)
    return facts


def read_upright(path: str, orientation: int) -> np.ndarray:
    """Decode an image for a picture.

    Args:
        path: of a file that `examine_file` found good.
        orientation: EXIF orientation to apply.

    Returns:
        uint8[H, W, 3], RGB.
    """
    with open_binary(path, block_size=_FETCH) as file, open_image(file) as image:
        return upright_pixels(image, orientation)


def upright_pixels(image: Image.Image, orientation: int) -> np.ndarray:
    """Return uint8[H, W, 3], RGB, of an opened image; 16 bits become 8."""
    if orientation != 1:
        image = image.transpose(_TURNS[orientation])
    if image.mode.startswith("I"):
        grey = (np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    return np.asarray(image.convert("RGB"))


def _notes(path: str, image: Image.Image, head: bytes, orientation: int) -> list[tuple[str, str]]:
    """Return what is worth knowing about a file."""
    notes = (
        ("wrong_extension", f"the content is {image.format}", not path.lower().endswith(_EXTENSIONS[image.format])),
        ("cmyk", "CMYK", image.mode == "CMYK"),
        ("sixteen_bit", "16 bits per channel", image.format == "PNG" and head[24] == 16),
        ("exif_rotated", f"EXIF orientation {orientation}", orientation != 1),
    )
    return [(kind, f"{path}: {message}") for kind, message, holds in notes if holds]


def _mean_color(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    if not np.isfinite(box).all():
        return np.full(3, np.nan)
    height, width = pixels.shape[:2]
    y1, x1, y2, x2 = np.clip(np.round(box), 0, (height, width, height, width)).astype(int)
    inside = pixels[y1:y2, x1:x2]
    if not inside.size:
        return np.full(3, np.nan)
    of_columns = inside.sum(axis=0, dtype=np.uint32)  # rows first: 30 times as fast as the mean over both
    return of_columns.sum(axis=0) / (inside.shape[0] * inside.shape[1])

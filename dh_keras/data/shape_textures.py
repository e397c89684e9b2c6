"""What fills the shapes and the backgrounds of the embedded dataset.

Letters: H, W image size in pixels; h, w size of the window around a shape.
"""

import colorsys
import math

import numpy as np
from PIL import Image

HUE_SPREAD = 0.07  # colours of two classes overlap in their tails


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


def vivid_color(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A saturated colour around a hue, float [3] in 0..255; backgrounds are nearly grey."""
    hue, saturation, value = hue + HUE_SPREAD * rng.standard_normal(), rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)) * 255


def texture(rng: np.random.Generator, height: int, width: int, color: np.ndarray) -> np.ndarray:
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
    return color.astype(np.float32) + contrast * pattern


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
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

"""Sizes of images after resizing, and of the few canvases they are padded to.

TensorFlow is not imported here, so data can be checked anywhere. Letter: N images.
"""

import numpy as np

from dh_keras.modeling.constants import SIZE_DIVISOR


def canvases(min_size: int, max_size: int) -> list[tuple[int, int]]:
    """Return the few padded sizes of all batches: landscape, portrait and square, without duplicates.

    Args:
        min_size: pixels of the short side after resizing.
        max_size: largest pixels of the long side after resizing.

    Returns:
        (height, width) pairs, multiples of `SIZE_DIVISOR`.

    Example:
        >>> canvases(800, 1333)
        [(800, 1344), (1344, 800), (800, 800)]
    """
    short, long = (-(-size // SIZE_DIVISOR) * SIZE_DIVISOR for size in (min_size, max_size))
    return list(dict.fromkeys([(short, long), (long, short), (short, short)]))


def canvas_of(sizes: np.ndarray, *, min_size: int, max_size: int) -> np.ndarray:
    """Choose the smallest canvas that holds each image after resizing.

    Args:
        sizes: int[N, 2], (height, width) of the images before resizing.
        min_size: as for `canvases`.
        max_size: as for `canvases`.

    Returns:
        int32[N], indices into `canvases(min_size, max_size)`.
    """
    resized = resized_sizes(sizes, min_size=min_size, max_size=max_size)
    table = np.array(canvases(min_size, max_size))
    holds = (resized[:, None] <= table).all(axis=2)
    return np.where(holds, table.prod(axis=1), np.iinfo(np.int64).max).argmin(axis=1).astype(np.int32)


def resized_sizes(sizes: np.ndarray, *, min_size: int, max_size: int) -> np.ndarray:
    """Return the sizes of images after resizing, by the float64 steps of `transforms.resized_size`.

    Args:
        sizes: int[N, 2], (height, width) in pixels.
        min_size: as for `canvases`.
        max_size: as for `canvases`.

    Returns:
        int32[N, 2], (height, width) in pixels, at least 1.
    """
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    scale = np.minimum(min_size / sizes.min(axis=1), max_size / sizes.max(axis=1))
    return np.maximum(np.floor(sizes * scale[:, None] + 0.5).astype(np.int32), 1)

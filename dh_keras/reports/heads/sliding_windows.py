"""Windows around ground-truth boxes whose intersection over union with them covers 0 to 1 evenly (paper, section 3.1).

The grid: ten rays lead away from an object. Along four of them the window keeps the object's size and moves up, down,
left or right; along two diagonals it moves and grows, along the other two it moves and shrinks; along the last two
it stays centred and grows or shrinks. On every ray the window stops twenty times, once for each bin of IoU, at the
centre of the bin. That makes 200 windows for each object, ten in each bin.

Letters: G boxes of an image, M windows of all of them, W windows of one.
"""

import functools
from typing import NamedTuple

import numpy as np

from dh_keras.modeling.ops.boxes import pairwise_iou

IOU_BINS = 20

# A window's centre moves by (dy, dx) sides of the object, its sides grow by the factor exp(growth), per unit of way.
_RAYS = np.array(
    [
        [-1, 0, 0],
        [1, 0, 0],
        [0, -1, 0],
        [0, 1, 0],
        [-1, -1, 0.5],
        [1, 1, 0.5],
        [-1, 1, -0.5],
        [1, -1, -0.5],
        [0, 0, 1],
        [0, 0, -1],
    ],
    np.float64,
)
_LONGEST_WAY = 8.0
# Windows of which less is inside the image are left out; the others are clipped, as proposals are.
_MIN_INSIDE = 0.5
_MIN_SIDE = 1.0


class Windows(NamedTuple):
    """The windows of the objects of an image.

    Args:
        boxes: float32 [M, 4], pixels of the image that the ground truth is in, clipped to it.
        object_index: int64 [M], 0..G-1, the object that a window was made for.
        ious: float32 [M], with that object, after clipping.
        outside: number of windows left out because most of them is outside the image, or nearly nothing remains.
        nearer_another: number of windows left out because they overlap another object of the class more.
    """

    boxes: np.ndarray
    object_index: np.ndarray
    ious: np.ndarray
    outside: int
    nearer_another: int


def sliding_windows(boxes: np.ndarray, classes: np.ndarray, image_size: tuple[int, int]) -> Windows:
    """Make the windows of every object of an image.

    A window that overlaps another object of the same class more than its own is a good proposal for that one: a high
    score would be right although its IoU is low. Such windows are left out.

    Args:
        boxes: float32 [G, 4], ground truth, pixels.
        classes: int [G].
        image_size: (height, width), pixels.
    """
    count = len(unit_windows())
    object_index = np.repeat(np.arange(len(boxes)), count)
    corner, side = np.tile(boxes[:, None, :2], 2), np.tile(boxes[:, None, 2:] - boxes[:, None, :2], 2)
    whole = (corner + unit_windows() * side).reshape(-1, 4)
    clipped = np.clip(whole, 0.0, np.tile(image_size, 2).astype(np.float64))
    inside = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) / np.prod(whole[:, 2:] - whole[:, :2], axis=1)
    kept = (inside >= _MIN_INSIDE) & ((clipped[:, 2:] - clipped[:, :2]).min(axis=1) >= _MIN_SIDE)
    windows, object_index = clipped[kept].astype(np.float32), object_index[kept]
    ious = pairwise_iou(windows, boxes.astype(np.float32)).numpy()
    own = ious[np.arange(len(windows)), object_index]
    rivals = classes[object_index][:, None] == classes
    rivals[np.arange(len(windows)), object_index] = False
    mine = np.where(rivals, ious, 0.0).max(axis=1, initial=0.0) <= own
    return Windows(windows[mine], object_index[mine], own[mine], int(np.sum(~kept)), int(np.sum(~mine)))


@functools.cache
def unit_windows() -> np.ndarray:
    """Float64 [W, 4], the windows of the object [0, 0, 1, 1]; ray by ray, IoU from low to high.

    IoU does not change when an axis is stretched, so they fit every object.
    """
    targets = (np.arange(IOU_BINS) + 0.5) / IOU_BINS
    rays, targets = np.repeat(_RAYS, IOU_BINS, axis=0), np.tile(targets, len(_RAYS))
    near, far = np.zeros(len(rays)), np.full(len(rays), _LONGEST_WAY)
    for _ in range(60):  # IoU falls along every ray, so the place can be closed in from both sides
        middle = (near + far) / 2.0
        beyond = _iou_with_unit(_windows_at(rays, middle)) < targets
        near, far = np.where(beyond, near, middle), np.where(beyond, middle, far)
    return _windows_at(rays, (near + far) / 2.0)


def _windows_at(rays: np.ndarray, way: np.ndarray) -> np.ndarray:
    centre = 0.5 + rays[:, :2] * way[:, None]
    half = 0.5 * np.exp(rays[:, 2:] * way[:, None])
    return np.concatenate([centre - half, centre + half], axis=1)


def _iou_with_unit(windows: np.ndarray) -> np.ndarray:
    sides = np.minimum(windows[:, 2:], 1.0) - np.maximum(windows[:, :2], 0.0)
    intersection = np.prod(np.maximum(sides, 0.0), axis=1)
    return intersection / (1.0 + np.prod(windows[:, 2:] - windows[:, :2], axis=1) - intersection)

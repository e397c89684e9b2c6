"""Images that are nearly the same, shifted against each other or not: candidates on tiny pictures, then verified.

A second photograph of a scene is often shifted by a few per cent, which changes every perceptual hash; correlation at
the best of several shifts finds it all the same. Letters: N images, S pixels of a thumbnail's side.
"""

import numpy as np

THUMBNAIL = 48  # S; a multiple of the coarse side
MIN_CORRELATION = 0.85  # of the thumbnails at the best shift; other photographs of like things stay below 0.75
SHIFT = THUMBNAIL // 6
_COARSE = 12
_COARSE_SHIFT = 2
_MIN_COARSE_CORRELATION = 0.8
# The search grows with the square of the images; beyond this many only copies that are not shifted are looked for.
MAX_SHIFTED = 10_000
PARTNERS = 3  # the most alike images of each set that an image is compared with: a video has thousands
_BLOCK = 1024


def near_duplicates(thumbnails: np.ndarray, sets: np.ndarray) -> list[tuple[int, int, float]]:
    """Find pairs of images that look the same.

    Args:
        thumbnails: uint8[N, S, S], grey. One without contrast is like no other.
        sets: [N], the set of each; partners are looked for in each set.

    Returns:
        (i, j, correlation in 0..1) with i < j, sorted.
    """
    import cv2

    found: list[tuple[int, int, float]] = []
    if len(thumbnails) < 2:
        return found
    for i, j in _candidates(thumbnails, sets):
        middle = thumbnails[i][SHIFT:-SHIFT, SHIFT:-SHIFT]
        correlation = float(cv2.matchTemplate(thumbnails[j], middle, cv2.TM_CCOEFF_NORMED).max())
        if correlation >= MIN_CORRELATION:
            found.append((int(i), int(j), correlation))
    return found


def _candidates(thumbnails: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return sorted int64[P, 2] with i < j of pairs that correlate on tiny pictures at some shift."""
    side = THUMBNAIL // _COARSE
    tiny = thumbnails.reshape(-1, _COARSE, side, _COARSE, side).mean(axis=(2, 4), dtype=np.float32)
    inner = _COARSE - 2 * _COARSE_SHIFT
    starts = range(2 * _COARSE_SHIFT + 1) if len(tiny) <= MAX_SHIFTED else [_COARSE_SHIFT]
    shifted = [_unit(tiny[:, y : y + inner, x : x + inner]) for y in starts for x in starts]
    middle = shifted[len(shifted) // 2]
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(tiny), _BLOCK):
        block = middle[start : start + _BLOCK]
        best = np.full((len(block), len(tiny)), -1.0, np.float32)
        for other in shifted:
            np.maximum(best, block @ other.T, out=best)
        rows = np.arange(len(block))
        best[rows, start + rows] = -1.0  # an image and itself
        for name in np.unique(sets):
            members = np.flatnonzero(sets == name)
            nearest = members[np.argsort(-best[:, members], axis=1, kind="stable")[:, :PARTNERS]]
            row, place = np.nonzero(np.take_along_axis(best, nearest, axis=1) >= _MIN_COARSE_CORRELATION)
            found.append(np.sort(np.stack([start + row, nearest[row, place]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _unit(pictures: np.ndarray) -> np.ndarray:
    """Return float32[N, D] of mean 0 and length 1, or 0 where there is hardly any contrast."""
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    spread = flat.std(axis=1, keepdims=True)
    return np.where(spread > 1.0, flat / (np.maximum(spread, 1.0) * np.sqrt(flat.shape[1])), 0.0).astype(np.float32)

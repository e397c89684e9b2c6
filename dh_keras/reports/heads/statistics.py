"""Numbers of the paper's section 3: means over bins of IoU, correlation with IoU and between cells. NumPy only.

Letters: M windows, G objects, S cells of a feature map or of a kernel, C channels.
"""

import numpy as np

# COCO's limits of small and medium objects, square pixels of the original image.
SIZE_LIMITS = (32.0**2, 96.0**2)
SIZES = ("all", "small", "medium", "large")
# Scores of an object that spread less than this, a float32 step at 1, do not vary.
_SCORE_STEP = 1e-7


def bin_statistics(ious: np.ndarray, values: np.ndarray, *, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group values [M] into equal bins of IoU [M] in 0..1; the last bin includes 1.

    Returns:
        int64 [bins], number of values; float64 [bins] each, their mean and standard deviation, NaN in an empty bin.
    """
    index = np.minimum((np.asarray(ious, np.float64) * bins).astype(np.int64), bins - 1)
    values = np.asarray(values, np.float64)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, values, minlength=bins) / count
        std = np.sqrt(np.bincount(index, (values - mean[index]) ** 2, minlength=bins) / count)
    return count, mean, std


def pearson_by_object(
    ious: np.ndarray, scores: np.ndarray, object_index: np.ndarray, *, num_objects: int
) -> np.ndarray:
    """Pearson correlation between the IoU and the score of each object's windows.

    Args:
        ious: float [M].
        scores: float [M].
        object_index: int [M], 0..G-1.
        num_objects: G.

    Returns:
        float64 [G]; NaN for an object without windows, or whose IoU or score never varies.
    """

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(object_index, values, minlength=num_objects)

    count = total(np.ones(len(ious)))
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (
            values - (total(values) / count)[object_index]
            for values in (np.asarray(ious, np.float64), np.asarray(scores, np.float64))
        )
        varies = np.sqrt(np.minimum(total(x * x), total(y * y)) / count) > _SCORE_STEP
        return np.where(varies, total(x * y) / np.sqrt(total(x * x) * total(y * y)), np.nan)


def size_masks(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Which objects are "all", "small", "medium", "large": bool [G] each, from areas [G] in square pixels."""
    group = np.digitize(areas, SIZE_LIMITS)
    return {"all": np.ones(len(areas), bool)} | {name: group == i for i, name in enumerate(SIZES[1:])}


def cell_correlations(vectors: np.ndarray) -> np.ndarray:
    """Pearson correlation over the channels between all pairs of cells.

    Each cell's mean over the channels is taken off first: what comes out of a ReLU is never negative, and a plain
    cosine would call any two cells alike.

    Args:
        vectors: float [..., S, C].

    Returns:
        float64 [..., S, S]; NaN beside a cell whose channels are all equal.
    """
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        directions = np.where(length > 0, centred / length, np.nan)
    return np.matmul(directions, np.swapaxes(directions, -1, -2))


class MeanCorrelation:
    """`cell_correlations` averaged over the objects that have been added; pairs that are NaN do not count."""

    def __init__(self, cells: int):
        self._sum = np.zeros((cells, cells))
        self._count = np.zeros((cells, cells))

    def add(self, vectors: np.ndarray) -> None:
        """Take in the feature maps float [objects, S, C]."""
        matrices = cell_correlations(vectors)
        self._sum += np.nansum(matrices, axis=0)
        self._count += np.sum(np.isfinite(matrices), axis=0)

    def mean(self) -> np.ndarray:
        """Float64 [S, S], NaN for pairs that never counted."""
        with np.errstate(invalid="ignore"):
            return self._sum / self._count


def describe_correlation(matrix: np.ndarray) -> dict[str, float | None]:
    """Sum a matrix [S, S] of a square map up.

    Returns:
        "all_pairs": mean over the pairs of different cells; "neighbours": over those that share a side.
    """
    side = round(len(matrix) ** 0.5)
    place = np.stack(np.divmod(np.arange(len(matrix)), side), axis=1)
    distance = np.abs(place[:, None] - place).sum(axis=2)
    return {"all_pairs": finite_mean(matrix[distance > 0]), "neighbours": finite_mean(matrix[distance == 1])}


def finite_mean(values: np.ndarray) -> float | None:
    """Mean of the values that are not NaN; None where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def mean_and_error(values: np.ndarray) -> dict[str, float | None]:
    """The "mean" of the values that are not NaN and its "standard_error"; None where there are too few for it."""
    finite = values[np.isfinite(values)]
    error = float(finite.std(ddof=1) / np.sqrt(len(finite))) if len(finite) > 1 else None
    return {"mean": finite_mean(values), "standard_error": error}

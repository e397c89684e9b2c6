"""Which training images an epoch shows, and which of them more than once."""

from typing import NamedTuple

import numpy as np

from dh_keras.config.schema import DataConfig
from dh_keras.data.augment import size_limits
from dh_keras.data.canvases import canvas_of
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import training_indices


class EpochImages(NamedTuple):
    """The images of every epoch.

    Args:
        indices: int32[N], into the dataset.
        canvas_index: int32[N], canvas of each.
        repeats: float64[N], how often each is shown in an epoch on average, at least 1; None where each is shown once.
    """

    indices: np.ndarray
    canvas_index: np.ndarray
    repeats: np.ndarray | None


def epoch_images(dataset: CocoDataset, data: DataConfig) -> EpochImages:
    """Choose the training images and how often they are shown.

    Args:
        dataset: the training split.
        data: filter_empty, repeat_threshold and what `size_limits` uses.

    Raises:
        DataError: when no image has a box.
    """
    indices, threshold = training_indices(dataset, data.filter_empty), data.repeat_threshold
    return EpochImages(
        indices=indices,
        canvas_index=canvas_of(dataset.sizes[indices], **size_limits(data)),
        repeats=repeat_factors(dataset, indices, threshold) if threshold else None,
    )


def repeat_factors(dataset: CocoDataset, indices: np.ndarray, threshold: float) -> np.ndarray:
    """Return how often each image is shown in an epoch, so that rare classes are seen more often.

    A class that a share f of the images shows asks for max(1, sqrt(threshold / f)); an image takes the largest wish of
    its classes, and 1 if it has no box.

    Args:
        dataset: the training split.
        indices: int[N], the images that are trained on; f counts these.
        threshold: 0 to 1; 0 repeats none.

    Returns:
        float64[N].

    Reference: Gupta et al., LVIS, section 5.
    """
    shows = np.zeros((len(indices), dataset.num_classes), bool)
    for row, index in enumerate(indices):
        shows[row, dataset.classes_of(index)] = True
    share = np.maximum(shows.mean(axis=0), 1e-12)
    wishes = np.maximum(1.0, np.sqrt(threshold / share))
    return np.where(shows, wishes, 1.0).max(axis=1, initial=1.0)

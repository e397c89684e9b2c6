"""Images to train on and images to validate on, with those that look alike on one side. Letter: N images."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dh_keras.errors import DataError
from dh_keras.reports.data_doctor.duplicates import THUMBNAIL, near_duplicates
from dh_keras.reports.data_doctor.file_scan import examine_files


def choose_validation(paths: Sequence[str], *, share: float, seed: int) -> tuple[np.ndarray, int]:
    """Choose the images to validate on, at random; near-duplicates, and theirs, stay together.

    Args:
        paths: of N images, each decoded once.
        share: of the images, above 0 and below 1; as many as groups allow without going above it, and at least one.
        seed: of the choice.

    Returns:
        bool[N], and how many images look like another.

    Raises:
        DataError: for another share, or a seed below 0.
    """
    if not 0 < share < 1:
        raise DataError(f"--val-share: expected a share above 0 and below 1, such as 0.2, got {share:g}")
    if seed < 0:
        raise DataError(f"--seed: expected a number from 0 up, got {seed}")
    facts = examine_files([(path, None, np.empty((0, 4))) for path in paths], label="comparing images")
    blank = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)  # is like no other
    thumbnails = np.stack([blank if fact.thumbnail is None else fact.thumbnail for fact in facts])
    pairs = near_duplicates(thumbnails, np.zeros(len(paths), np.int64))
    groups = _groups(pairs, len(paths))
    sizes = np.bincount(groups)
    wanted, chosen = max(1, round(share * len(paths))), []
    order = np.random.default_rng(seed).permutation(len(sizes))
    for group in order.tolist():
        if sizes[chosen].sum() + sizes[group] <= wanted:
            chosen.append(group)
    if not chosen:
        chosen = [order[np.argmin(sizes[order])]]
    return np.isin(groups, chosen), int(sizes[sizes > 1].sum())


def _groups(pairs: Sequence[tuple[int, int, float]], count: int) -> np.ndarray:
    """Return int[N], the group of each image."""
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    links = coo_array((np.ones(len(pairs)), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]

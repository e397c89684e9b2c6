"""Decoding every image before training, so that a damaged one is not found hours later.

The check of `images` looks at headers and ends only; many damaged files pass it. This is the training's own decoder.
"""

import time

import tensorflow as tf

from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import find_bad_image, image_dataset
from dh_keras.errors import DataError

_TIMED = 64
_SECONDS = 60.0


def verify_images(dataset: CocoDataset, how: str, *, shard: tuple[int, int] = (0, 1)) -> None:
    """Decode the images of a split as training does.

    Args:
        dataset: checked already by its headers.
        how: "full" decodes every image, "headers" none, "auto" all where they would take less than a minute by the time
            of the first ones, else those.
        shard: (worker, number of workers): decode this worker's share.

    Raises:
        DataError: naming the first file that cannot be decoded.
    """
    indices = range(len(dataset))[shard[0] :: shard[1]]
    if how == "headers" or not indices:
        return
    start, done = 0.0, 0
    try:
        for done, _ in enumerate(image_dataset(dataset, indices), start=1):
            if done == 1:
                start = time.perf_counter()  # the graph is made for the first one
            if done == _TIMED and how == "auto":
                seconds = (time.perf_counter() - start) / (done - 1) * len(indices)
                if seconds > _SECONDS:
                    print(
                        f"note: {len(indices)} images of {dataset.annotations_path} are checked by their headers only; "
                        f"data.verify=full decodes them all before the first step, in about {seconds / 60:.0f} minutes"
                    )
                    return
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        bad = find_bad_image(dataset, indices[done:])
        if bad is None:
            raise
        raise DataError(bad) from error

"""RoIAlign along one axis: which cells each bin takes a share of (Mask R-CNN, section 3).

Letters: R RoIs, S bins, E entries of a bin.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dh_keras.modeling.ops.indexing import count_up

# Two cells hold four samples that are half a cell apart; one more for each end, and one for rounding.
_SAMPLES_NEAR_A_CELL = 7


class AxisWeights(NamedTuple):
    """Weights along one axis.

    Args:
        cells: int64 [R, S, E], row or column of the feature map.
        weights: float32 [R, S, E], each cell's share of the bin's average.
        counts: int64 [R, 1, 1], how many of the E entries of a bin can be non-zero, or None for all.
    """

    cells: tf.Tensor
    weights: tf.Tensor
    counts: tf.Tensor | None


def axis_weights(
    start: tf.Tensor,
    end: tf.Tensor,
    strides: tf.Tensor,
    map_size: tf.Tensor,
    num_bins: int,
    sampling_ratio: int,
    geometry: str,
) -> AxisWeights:
    """Interpolation weights of every bin along one axis; start and end in pixels, map_size in cells, each [R, 1, 1]."""
    if geometry == "legacy":
        start = start / strides
        bin_size = tf.maximum((end - 1.0) / strides - start, 1.0) / num_bins
    else:
        bin_size = (end - start) / strides / num_bins
        start = start / strides - 0.5
    bins = tf.constant(np.arange(num_bins, dtype=np.float32)[:, None])
    if sampling_ratio > 0:
        return _fixed_weights(start, bin_size, bins, tf.cast(map_size, tf.float32), sampling_ratio)
    return _adaptive_weights(start, bin_size, bins, tf.cast(map_size, tf.float32))


def _sample_positions(
    start: tf.Tensor, bin_size: tf.Tensor, bins: tf.Tensor, map_size: tf.Tensor, samples: tf.Tensor, sample: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions [R, S, samples] in cells, moved onto the map, and the share of the bin's mean that each has.

    Of the numbers in sample, those below an RoI's own, in samples [R, 1, 1], count.
    """
    at_least_one = tf.maximum(samples, 1.0)
    position = start + (bins + (sample + 0.5) / at_least_one) * bin_size
    counted = (sample < samples) & (position >= -1.0) & (position <= map_size)
    share = tf.where(counted, 1.0 / at_least_one, 0.0)
    return tf.clip_by_value(position, 0.0, map_size - 1.0), share


def _fixed_weights(
    start: tf.Tensor, bin_size: tf.Tensor, bins: tf.Tensor, map_size: tf.Tensor, samples: int
) -> AxisWeights:
    """Two entries, the cells on either side, for each of a fixed number of samples."""
    # As a constant it would be folded into others, and positions would round differently from one graph to the next.
    per_roi = tf.fill(tf.shape(start), float(samples))
    sample = tf.constant(np.arange(samples, dtype=np.float32))
    position, share = _sample_positions(start, bin_size, bins, map_size, per_roi, sample)
    low = tf.floor(position)
    high = tf.minimum(low + 1.0, map_size - 1.0)
    fraction = position - low
    cells = tf.concat([low, high], axis=-1)
    weights = tf.concat([share * (1.0 - fraction), share * fraction], axis=-1)
    return AxisWeights(tf.cast(cells, tf.int64), weights, counts=None)


def _adaptive_weights(start: tf.Tensor, bin_size: tf.Tensor, bins: tf.Tensor, map_size: tf.Tensor) -> AxisWeights:
    """As many samples as the bin spans cells, so n samples touch at most n + 1 neighbouring cells.

    What is computed for an RoI grows with the number of its cells along the axis, not with its square.
    """
    samples = tf.maximum(tf.cast(tf.math.ceil(bin_size), tf.int64), 0)
    max_samples = tf.maximum(tf.reduce_max(samples), 1)  # also when all RoIs are empty
    offsets = count_up(max_samples + 1, tf.float32)
    per_roi = tf.cast(samples, tf.float32)
    first, _ = _sample_positions(start, bin_size, bins, map_size, per_roi, tf.zeros([1]))
    cells = tf.floor(first) + offsets
    # Samples are at least half a cell apart where there are several, so few lie less than a cell from one.
    begin = start + bins * bin_size
    per_cell = per_roi / tf.maximum(bin_size, 1e-6)
    nearest = tf.maximum(tf.floor((cells - 1.0 - begin) * per_cell - 0.5), 0.0)
    near = tf.expand_dims(nearest, 3) + count_up(tf.minimum(max_samples, _SAMPLES_NEAR_A_CELL), tf.float32)
    shape = tf.shape(near)
    near = tf.reshape(near, [shape[0], bins.shape[0], -1])
    position, share = _sample_positions(start, bin_size, bins, map_size, per_roi, near)
    # A sample's bilinear weight for a cell is a hat function of their distance.
    hat = tf.maximum(1.0 - tf.abs(tf.reshape(position, shape) - tf.expand_dims(cells, 3)), 0.0)
    weights = tf.reduce_sum(tf.reshape(share, shape) * hat, axis=3)
    cells = tf.minimum(cells, map_size - 1.0)
    return AxisWeights(tf.cast(cells, tf.int64), weights, counts=samples + 1)

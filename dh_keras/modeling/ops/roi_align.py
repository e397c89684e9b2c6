"""RoIAlign over all pyramid levels and images at once (Mask R-CNN, section 3; FPN paper, equation 1).

Bilinear sampling followed by averaging is linear in the features, and its weights are products of a vertical and a
horizontal weight. So the pooling of every RoI is one row block of a sparse matrix, [R * 49, cells of all levels and
images], that is multiplied with the feature table [cells, C]. That is exact for every sampling ratio, border rule and
geometry, costs no work on unused levels, and its gradient is the transposed product.

Letters: R RoIs, S output cells per side (7), E weight entries per output cell and axis, C channels.
"""

from typing import NamedTuple

import tensorflow as tf

from dh_keras.modeling.constants import (
    CANONICAL_ROI_LEVEL,
    CANONICAL_ROI_SIZE,
    LEVEL_STRIDES,
    ROI_LEVELS,
    ROI_OUTPUT_SIZE,
)
from dh_keras.modeling.ops.boxes import box_area


class AxisWeights(NamedTuple):
    """Weights along one axis.

    Args:
        cells: int32 [R, S, E], row or column of the feature map.
        weights: float32 [R, S, E], each cell's share of the bin's average.
        counts: int32 [R], how many of the E entries of a bin can be non-zero, or None for all.
    """

    cells: tf.Tensor
    weights: tf.Tensor
    counts: tf.Tensor | None


def roi_levels(rois: tf.Tensor) -> tf.Tensor:
    """Pyramid level of each RoI, floor(4 + log2(sqrt(area) / 224 + 1e-6)) clamped to P2..P5.

    Args:
        rois: float32 [R, 4], pixels, before they are scaled for a head.

    Returns:
        int32 [R], 0 for P2 .. 3 for P5.
    """
    size = tf.sqrt(box_area(rois))
    level = tf.floor(CANONICAL_ROI_LEVEL + tf.math.log(size / CANONICAL_ROI_SIZE + 1e-6) / tf.math.log(2.0))
    first = int(ROI_LEVELS[0][1:])
    return tf.clip_by_value(tf.cast(level, tf.int32) - first, 0, len(ROI_LEVELS) - 1)


def roi_align(
    features_per_level: dict[str, tf.Tensor],
    rois: tf.Tensor,
    image_index: tf.Tensor,
    levels: tf.Tensor,
    *,
    sampling_ratio: int,
    geometry: str = "continuous",
    differentiable: bool = True,
) -> tf.Tensor:
    """Pool a 7x7 feature map for every RoI.

    Args:
        features_per_level: float [B, H, W, C] for each of "P2".."P5"; other keys are left alone.
        rois: float32 [R, 4], pixels of the resized image, already scaled for the head; may lie outside the image.
        image_index: int32 [R], which of the B images an RoI belongs to.
        levels: int32 [R], from `roi_levels` of the unscaled RoIs.
        sampling_ratio: samples per bin and axis; 0 takes ceil(bin size in cells).
        geometry: "continuous" shifts samples by half a cell; "legacy" does not, ends an RoI at its last inclusive
            pixel and makes it at least one cell high and wide.
        differentiable: False leaves the gradient out of the graph, for graphs that are served.

    Returns:
        float [R, 7, 7, C] in the features' dtype. Samples more than one cell outside the map count as 0. Gradients
        flow to the features, not to the RoIs.
    """
    num_rois = tf.shape(rois)[0]
    # A sparse matrix without entries or rows breaks the kernels of the product: an empty RoI stands in.
    missing = tf.maximum(1 - num_rois, 0)
    rois = tf.pad(tf.stop_gradient(rois), [[0, missing], [0, 0]])
    image_index, levels = (tf.pad(x, [[0, missing]]) for x in (image_index, levels))

    maps = [features_per_level[level] for level in ROI_LEVELS]
    channels = maps[0].shape[-1]
    table = tf.concat([tf.reshape(tf.cast(m, tf.float32), [-1, channels]) for m in maps], axis=0)
    sizes = tf.stack([tf.shape(m)[1:3] for m in maps])
    cells_per_level = tf.shape(maps[0])[0] * sizes[:, 0] * sizes[:, 1]
    map_size = tf.gather(sizes, levels)
    first_cell = tf.gather(tf.cumsum(cells_per_level, exclusive=True), levels)
    first_cell += image_index * map_size[:, 0] * map_size[:, 1]
    strides = tf.gather(tf.constant([float(LEVEL_STRIDES[level]) for level in ROI_LEVELS]), levels)

    vertical = _axis_weights(rois[:, 0], rois[:, 2], strides, map_size[:, 0], sampling_ratio, geometry)
    horizontal = _axis_weights(rois[:, 1], rois[:, 3], strides, map_size[:, 1], sampling_ratio, geometry)
    assemble = _assemble_dense if vertical.counts is None else _assemble_ragged
    indices, weights = assemble(first_cell, map_size[:, 1], vertical, horizontal)
    num_rows = tf.shape(rois)[0] * ROI_OUTPUT_SIZE * ROI_OUTPUT_SIZE
    multiply = _differentiable_sparse_matmul if differentiable else _sparse_matmul
    pooled = multiply(indices, weights, num_rows, table)
    pooled = tf.reshape(pooled, [-1, ROI_OUTPUT_SIZE, ROI_OUTPUT_SIZE, channels])[:num_rois]
    return tf.cast(pooled, maps[0].dtype)


def _axis_weights(
    start: tf.Tensor, end: tf.Tensor, strides: tf.Tensor, map_size: tf.Tensor, sampling_ratio: int, geometry: str
) -> AxisWeights:
    """Interpolation weights of every bin along one axis; start and end in pixels, map_size in cells, each [R]."""
    if geometry == "legacy":
        start = start / strides
        bin_size = tf.maximum((end - 1.0) / strides - start, 1.0) / ROI_OUTPUT_SIZE
    else:
        bin_size = (end - start) / strides / ROI_OUTPUT_SIZE
        start = start / strides - 0.5
    if sampling_ratio > 0:
        return _fixed_weights(start, bin_size, tf.cast(map_size, tf.float32), sampling_ratio)
    return _adaptive_weights(start, bin_size, tf.cast(map_size, tf.float32))


def _sample_positions(
    start: tf.Tensor, bin_size: tf.Tensor, map_size: tf.Tensor, samples: tf.Tensor, max_samples: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions [R, S, max_samples] in cells, moved onto the map, and the share of the bin's mean that each has."""
    samples = tf.cast(samples, tf.float32)[:, None, None]
    sample = tf.range(max_samples, dtype=tf.float32)[None, None, :]
    bins = tf.range(ROI_OUTPUT_SIZE, dtype=tf.float32)[None, :, None]
    position = start[:, None, None] + (bins + (sample + 0.5) / tf.maximum(samples, 1.0)) * bin_size[:, None, None]
    map_size = map_size[:, None, None]
    counted = (sample < samples) & (position >= -1.0) & (position <= map_size)
    share = tf.where(counted, 1.0 / tf.maximum(samples, 1.0), 0.0)
    return tf.clip_by_value(position, 0.0, map_size - 1.0), share


def _fixed_weights(start: tf.Tensor, bin_size: tf.Tensor, map_size: tf.Tensor, samples: int) -> AxisWeights:
    """Two entries, the cells on either side, for each of a fixed number of samples."""
    position, share = _sample_positions(start, bin_size, map_size, tf.fill(tf.shape(start), samples), samples)
    low = tf.floor(position)
    high = tf.minimum(low + 1.0, map_size[:, None, None] - 1.0)
    fraction = position - low
    cells = tf.concat([low, high], axis=-1)
    weights = tf.concat([share * (1.0 - fraction), share * fraction], axis=-1)
    return AxisWeights(tf.cast(cells, tf.int32), weights, counts=None)


def _adaptive_weights(start: tf.Tensor, bin_size: tf.Tensor, map_size: tf.Tensor) -> AxisWeights:
    """As many samples as the bin spans cells, so n samples touch at most n + 1 neighbouring cells."""
    samples = tf.maximum(tf.cast(tf.math.ceil(bin_size), tf.int32), 0)
    max_samples = tf.maximum(tf.reduce_max(samples), 1)  # also when all RoIs are empty
    position, share = _sample_positions(start, bin_size, map_size, samples, max_samples)
    first = tf.floor(position[:, :, :1])
    cells = first + tf.range(max_samples + 1, dtype=tf.float32)
    # A sample's bilinear weight for a cell is a hat function of their distance.
    hat = tf.maximum(1.0 - tf.abs(position[:, :, :, None] - cells[:, :, None, :]), 0.0)
    weights = tf.reduce_sum(share[:, :, :, None] * hat, axis=2)
    cells = tf.minimum(cells, map_size[:, None, None] - 1.0)
    return AxisWeights(tf.cast(cells, tf.int32), weights, counts=samples + 1)


def _assemble_dense(
    first_cell: tf.Tensor, map_width: tf.Tensor, vertical: AxisWeights, horizontal: AxisWeights
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sparse indices [nnz, 2] and values [nnz] where every bin has the same number of entries."""
    cells = (
        first_cell[:, None, None, None, None]
        + (vertical.cells * map_width[:, None, None])[:, :, None, :, None]
        + horizontal.cells[:, None, :, None, :]
    )
    values = vertical.weights[:, :, None, :, None] * horizontal.weights[:, None, :, None, :]
    shape = tf.shape(values)
    entries = shape[3] * shape[4]
    rows = tf.repeat(tf.range(shape[0] * shape[1] * shape[2]), entries)
    return tf.cast(tf.stack([rows, tf.reshape(cells, [-1])], axis=1), tf.int64), tf.reshape(values, [-1])


def _assemble_ragged(
    first_cell: tf.Tensor, map_width: tf.Tensor, vertical: AxisWeights, horizontal: AxisWeights
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sparse indices and values where the number of entries depends on the RoI; unused entries are never built."""
    bins = ROI_OUTPUT_SIZE * ROI_OUTPUT_SIZE
    per_bin = vertical.counts * horizontal.counts
    per_roi = per_bin * bins
    roi = tf.repeat(tf.range(tf.shape(per_roi)[0]), per_roi)
    within_roi = tf.range(tf.shape(roi)[0]) - tf.gather(tf.cumsum(per_roi, exclusive=True), roi)
    per_bin, columns = tf.gather(per_bin, roi), tf.gather(horizontal.counts, roi)
    bin_index, within_bin = within_roi // per_bin, within_roi % per_bin
    at_vertical = tf.stack([roi, bin_index // ROI_OUTPUT_SIZE, within_bin // columns], axis=1)
    at_horizontal = tf.stack([roi, bin_index % ROI_OUTPUT_SIZE, within_bin % columns], axis=1)
    cells = (
        tf.gather(first_cell, roi)
        + tf.gather_nd(vertical.cells, at_vertical) * tf.gather(map_width, roi)
        + tf.gather_nd(horizontal.cells, at_horizontal)
    )
    values = tf.gather_nd(vertical.weights, at_vertical) * tf.gather_nd(horizontal.weights, at_horizontal)
    return tf.cast(tf.stack([roi * bins + bin_index, cells], axis=1), tf.int64), values


def _csr_matrix(indices: tf.Tensor, values: tf.Tensor, num_rows: tf.Tensor, num_columns: tf.Tensor) -> tf.Tensor:
    dense_shape = tf.cast(tf.stack([num_rows, num_columns]), tf.int64)
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(indices=indices, values=values, dense_shape=dense_shape)


def _sparse_matmul(indices: tf.Tensor, values: tf.Tensor, num_rows: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Sparse [num_rows, cells] times table [cells, C], without a gradient.

    The compressed-row product runs on all cores, an order of magnitude faster than `tf.sparse.sparse_dense_matmul`.
    """
    return tf.raw_ops.SparseMatrixMatMul(a=_csr_matrix(indices, values, num_rows, tf.shape(table)[0]), b=table)


def _differentiable_sparse_matmul(
    indices: tf.Tensor, values: tf.Tensor, num_rows: tf.Tensor, table: tf.Tensor
) -> tf.Tensor:
    """`_sparse_matmul` that is differentiable in the table, not in the weights."""

    @tf.custom_gradient
    def multiply(table: tf.Tensor):
        matrix = _csr_matrix(indices, values, num_rows, tf.shape(table)[0])

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            # With transpose_a=True threads add to the same rows in any order, and no two runs are alike.
            transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=table.dtype)
            return tf.raw_ops.SparseMatrixMatMul(a=transposed, b=upstream)

        return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=table), gradient

    return multiply(table)

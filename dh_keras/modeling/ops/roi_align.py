"""RoIAlign over all pyramid levels and images at once (Mask R-CNN, section 3; FPN paper, equation 1).

Bilinear sampling followed by averaging is linear in the features, and its weights are products of a vertical and a
horizontal weight. So the pooling of every RoI is one row block of a sparse matrix, [R * S * S, cells of all levels and
images], that is multiplied with the feature table [cells, C]. That is exact for every sampling ratio, border rule and
geometry, multiplies nothing of unused levels, and its gradient is the transposed product.

Letters: R RoIs, S output cells along an axis (7), E weight entries per output cell and axis, C channels.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from dh_keras.modeling.constants import (
    CANONICAL_ROI_LEVEL,
    CANONICAL_ROI_SIZE,
    ROI_LEVELS,
    ROI_OUTPUT_SIZE,
)
from dh_keras.modeling.ops.boxes import box_area
from dh_keras.modeling.ops.indexing import count_up, map_sizes, on_host, running_sum
from dh_keras.modeling.ops.machine import for_gpu
from dh_keras.modeling.ops.roi_align_weights import AxisWeights, axis_weights


def roi_levels(rois: tf.Tensor, *, levels: Sequence[str] = ROI_LEVELS) -> tf.Tensor:
    """Pyramid level of each RoI, floor(4 + log2(sqrt(area) / 224 + 1e-6)), or the next finer one that there is.

    Args:
        rois: float32 [R, 4], pixels, before they are scaled for a head.
        levels: such as "P2", "P3", from the finest to the coarsest. RoIs that belong to a finer one than the first are
            pooled from the first.

    Returns:
        int64 [R], places in levels.
    """
    size = tf.sqrt(box_area(rois))
    level = tf.floor(CANONICAL_ROI_LEVEL + tf.math.log(size / CANONICAL_ROI_SIZE + 1e-6) / math.log(2.0))
    coarser = tf.constant([float(name[1:]) for name in levels[1:]], shape=[len(levels) - 1])
    return tf.reduce_sum(tf.cast(tf.expand_dims(level, 1) >= coarser, tf.int64), axis=1)


def pooling_order(rois: tf.Tensor, image_index: tf.Tensor) -> tf.Tensor | None:
    """Indices int32 [R] that put those of one level and image next to each other, from top to bottom; None for a GPU.

    One after the other they read the same cells, which a CPU's cache still holds then. In the order of their scores,
    the product of 1000 RoIs takes twice as long.

    Args:
        rois: float32 [R, 4], pixels.
        image_index: integers [R].
    """
    if for_gpu():
        return None
    image_index = tf.cast(image_index, tf.int64)
    group = roi_levels(rois) * (tf.reduce_max(image_index) + 1) + image_index
    top, _, bottom, _ = tf.unstack(rois, num=4, axis=1)
    middle = top + bottom
    return tf.argsort(tf.cast(group, tf.float32) * (tf.reduce_max(middle) + 1.0) + middle, stable=True)


def roi_align(
    features_per_level: dict[str, tf.Tensor],
    rois: tf.Tensor,
    image_index: tf.Tensor,
    level_index: tf.Tensor,
    *,
    sampling_ratio: int,
    geometry: str = "continuous",
    output_size: tuple[int, int] = (ROI_OUTPUT_SIZE, ROI_OUTPUT_SIZE),
    levels: Sequence[str] = ROI_LEVELS,
    differentiable: bool = True,
) -> tf.Tensor:
    """Pool a feature map of one size for every RoI.

    Args:
        features_per_level: float [B, H, W, C] for each of the levels; other keys are left alone.
        rois: float32 [R, 4], pixels of the resized image, already scaled for the head; may lie outside the image.
        image_index: integers [R], which of the B images an RoI belongs to.
        level_index: integers [R], from `roi_levels` of the unscaled RoIs.
        sampling_ratio: samples per bin and axis; 0 takes ceil(bin size in cells).
        geometry: "continuous" shifts samples by half a cell; "legacy" does not, ends an RoI at its last inclusive
            pixel and makes it at least one cell high and wide.
        output_size: cells along both axes, S and S.
        levels: the keys that are pooled from, "P2" with a stride of 4, "P3" with one of 8 and so on.
        differentiable: False leaves the gradient out of the graph, for graphs that are served.

    Returns:
        float [R, S, S, C] in the features' dtype. Samples more than one cell outside the map count as 0. Gradients
        flow to the features, not to the RoIs.
    """
    num_rois = tf.shape(rois)[0]
    # A sparse matrix without entries or rows breaks the kernels of the product: an empty RoI is behind the others.
    arrays = (tf.stop_gradient(rois), tf.cast(image_index, tf.int64), tf.cast(level_index, tf.int64))
    rois, image_index, level_index = (
        tf.concat([array, tf.zeros([1, *array.shape[1:]], array.dtype)], axis=0) for array in arrays
    )
    maps = [features_per_level[level] for level in levels]
    table, first_cell, map_width, vertical, horizontal = lay_out(
        maps,
        rois,
        image_index,
        level_index,
        sampling_ratio=sampling_ratio,
        geometry=geometry,
        output_size=output_size,
        levels=levels,
    )
    assemble = _assemble_dense if vertical.counts is None else _assemble_ragged
    indices, weights = assemble(first_cell, map_width, vertical, horizontal)
    num_rows = (num_rois + 1) * (output_size[0] * output_size[1])
    multiply = _differentiable_sparse_matmul if differentiable else _sparse_matmul
    pooled = multiply(indices, weights, num_rows, table)
    pooled = tf.reshape(pooled, [-1, *output_size, maps[0].shape[-1]])[:num_rois]
    return tf.cast(pooled, maps[0].dtype)


def lay_out(
    maps: Sequence[tf.Tensor],
    rois: tf.Tensor,
    image_index: tf.Tensor,
    level_index: tf.Tensor,
    *,
    sampling_ratio: int,
    geometry: str,
    output_size: tuple[int, int],
    levels: Sequence[str],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, AxisWeights, AxisWeights]:
    """What every way of pooling begins with, see `roi_align`; the indices are int64.

    Returns:
        The feature table float32 [cells of all levels and images, C]; of each RoI, the row of the table where its map
        begins and the width of its map, int64 [R, 1, 1]; and its weights along both axes.
    """
    channels = maps[0].shape[-1]
    # Joined in their own precision, which is fewer bytes. RoIAligns of one graph share this table.
    table = tf.cast(tf.concat([tf.reshape(m, [-1, channels]) for m in maps], axis=0), tf.float32)
    sizes = map_sizes(maps)
    batch = tf.shape(maps[0])[0]
    with on_host():
        cells_per_map = tf.reduce_prod(sizes, axis=1, keepdims=True)
        first_of_level = tf.cumsum(tf.cast(batch, tf.int64) * cells_per_map, exclusive=True)
        numbers = tf.concat([sizes, cells_per_map, first_of_level], axis=1)
    # What follows has a number for each RoI, all bins and all entries, or more: [R, 1, 1].
    top, left, bottom, right = tf.unstack(tf.reshape(rois, [-1, 1, 1, 4]), axis=3)
    numbers = tf.reshape(tf.gather(numbers, level_index), [-1, 1, 1, 4])
    map_height, map_width, cells_of_map, first_of_level = (numbers[..., column] for column in range(4))
    first_cell = first_of_level + tf.reshape(image_index, [-1, 1, 1]) * cells_of_map
    strides = tf.constant([2.0 ** int(level[1:]) for level in levels])
    strides = tf.reshape(tf.gather(strides, level_index), [-1, 1, 1])
    vertical = axis_weights(top, bottom, strides, map_height, output_size[0], sampling_ratio, geometry)
    horizontal = axis_weights(left, right, strides, map_width, output_size[1], sampling_ratio, geometry)
    return table, first_cell, map_width, vertical, horizontal


def _assemble_dense(
    first_cell: tf.Tensor, map_width: tf.Tensor, vertical: AxisWeights, horizontal: AxisWeights
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sparse indices [nnz, 2] and values [nnz] where every bin has the same number of entries."""
    (_, bins_down, entries_down), (_, bins_across, entries_across) = vertical.cells.shape, horizontal.cells.shape

    def combine(combination: Callable, down: tf.Tensor, across: tf.Tensor) -> tf.Tensor:
        """Of every bin, one number for each pair of an entry down and one across: [R * S * S, E * E]."""
        pairs = combination(
            tf.reshape(down, [-1, bins_down, 1, entries_down, 1]),
            tf.reshape(across, [-1, 1, bins_across, 1, entries_across]),
        )
        return tf.reshape(pairs, [-1, entries_down * entries_across])

    cells = combine(tf.add, first_cell + vertical.cells * map_width, horizontal.cells)
    values = combine(tf.multiply, vertical.weights, horizontal.weights)
    shape = tf.shape(cells)
    rows = tf.broadcast_to(tf.expand_dims(count_up(shape[0]), 1), shape)
    return tf.reshape(tf.stack([rows, cells], axis=-1), [-1, 2]), tf.reshape(values, [-1])


def _assemble_ragged(
    first_cell: tf.Tensor, map_width: tf.Tensor, vertical: AxisWeights, horizontal: AxisWeights
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sparse indices and values where the number of entries depends on the RoI; unused entries are never built."""
    bins = [tf.shape(first_cell)[0], vertical.cells.shape[1], horizontal.cells.shape[1]]
    row_cells = first_cell + vertical.cells * map_width

    def of_bins(values: tf.Tensor) -> tf.Tensor:
        """Values that broadcast to [R, S, S], of all bins in a row."""
        return tf.reshape(tf.broadcast_to(values, bins), [-1])

    # First the rows of all bins, then the columns of all rows.
    matrix_row, row = _members(of_bins(vertical.counts), of_bins(tf.expand_dims(_first_entries(vertical), 2)))
    counts, firsts = of_bins(horizontal.counts), of_bins(tf.expand_dims(_first_entries(horizontal), 1))
    run, column = _members(tf.gather(counts, matrix_row), tf.gather(firsts, matrix_row))
    row_cells = tf.gather(tf.reshape(row_cells, [-1]), row)
    column_cells = tf.reshape(horizontal.cells, [-1])
    # A gather takes as long for two numbers at once as for one.
    indices = tf.gather(tf.stack([matrix_row, row_cells], axis=1), run)
    indices += tf.gather(tf.stack([tf.zeros_like(column_cells), column_cells], axis=1), column)
    row_weights = tf.gather(tf.reshape(vertical.weights, [-1]), row)
    return indices, tf.gather(row_weights, run) * tf.gather(tf.reshape(horizontal.weights, [-1]), column)


def _first_entries(axis: AxisWeights) -> tf.Tensor:
    """Where the entries of each bin begin in the flat weights: int64 [R, S]."""
    shape = tf.shape(axis.cells)
    with on_host():
        entries = tf.cast(shape[2], tf.int64)
    return tf.reshape(count_up(shape[0] * shape[1]) * entries, shape[:2])


def _members(counts: tf.Tensor, firsts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """For every member of groups of so many members each: its group, and its place where its group begins at firsts.

    Args:
        counts: int64 [groups], each at least 1.
        firsts: int64 [groups].
    """
    if not for_gpu():  # which has no kernel for these two
        members = tf.ragged.range(firsts, firsts + counts).to_sparse()
        return members.indices[:, 0], members.values
    ends = running_sum(counts)
    starts = ends - counts
    member = count_up(ends[-1])
    # A step up where a group begins; a search for each member's group would take several times as long.
    begins = tf.scatter_nd(starts[1:, None], tf.ones_like(starts[1:]), tf.shape(member, tf.int64))
    group = running_sum(begins)
    return group, member + tf.gather(firsts - starts, group)


def _csr_matrix(indices: tf.Tensor, values: tf.Tensor, num_rows: tf.Tensor, num_columns: tf.Tensor) -> tf.Tensor:
    with on_host():
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

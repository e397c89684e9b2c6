"""`roi_align` from operations that every runtime has: gathering and matrix products, no sparse matrices.

Letters: R RoIs, N those of a group, S output cells along an axis, E weight entries per cell and axis, C channels.
"""

from collections.abc import Sequence

import tensorflow as tf

from dh_keras.modeling.constants import ROI_LEVELS, ROI_OUTPUT_SIZE
from dh_keras.modeling.ops.roi_align import lay_out
from dh_keras.modeling.ops.roi_align_weights import AxisWeights

# RoIs that are pooled together; their cells are in memory at once, 6 MB for 256 channels and 2 samples per axis.
_GROUP = 8


def gather_roi_align(
    features_per_level: dict[str, tf.Tensor],
    rois: tf.Tensor,
    image_index: tf.Tensor,
    level_index: tf.Tensor,
    *,
    sampling_ratio: int,
    geometry: str = "continuous",
    output_size: tuple[int, int] = (ROI_OUTPUT_SIZE, ROI_OUTPUT_SIZE),
    levels: Sequence[str] = ROI_LEVELS,
) -> tf.Tensor:
    """What `roi_align` gives, up to rounding, group after group of RoIs; see there."""
    num_rois = tf.shape(rois)[0]
    # Whole groups, and one of them where there are no RoIs.
    missing = tf.maximum((num_rois + _GROUP - 1) // _GROUP, 1) * _GROUP - num_rois
    rois = tf.pad(rois, [[0, missing], [0, 0]])
    image_index, level_index = (
        tf.pad(tf.cast(index, tf.int64), [[0, missing]]) for index in (image_index, level_index)
    )

    maps = [features_per_level[level] for level in levels]
    channels = maps[0].shape[-1]
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

    def pool(group: tf.Tensor) -> tf.Tensor:
        members = slice(group, group + _GROUP)
        rows, row_weights = _entries(vertical, members)
        columns, column_weights = _entries(horizontal, members)
        first = first_cell[members] + rows * map_width[members]
        cells = tf.gather(table, first[:, :, :, None, None] + columns[:, None, None, :, :])  # [N, S, E, S, E, C]
        shape = tf.shape(cells)
        across = tf.reshape(cells, [_GROUP, output_size[0], shape[2], shape[3] * shape[4] * channels])
        across = tf.matmul(row_weights[:, :, None, :], across)  # [N, S, 1, S * E * C]
        along = tf.reshape(across, [_GROUP, *output_size, shape[4], channels])
        return tf.matmul(column_weights[:, None, :, None, :], along)[..., 0, :]  # [N, S, S, 1, C] without the 1

    pooled = tf.map_fn(
        pool,
        tf.range(0, num_rois + missing, _GROUP),
        fn_output_signature=tf.TensorSpec([_GROUP, *output_size, channels], tf.float32),
    )
    pooled = tf.reshape(pooled, [-1, *output_size, channels])[:num_rois]
    return tf.cast(pooled, maps[0].dtype)


def _entries(axis: AxisWeights, members: slice) -> tuple[tf.Tensor, tf.Tensor]:
    """Cells and weights [N, S, E] of some RoIs, E no larger than the largest of them needs."""
    if axis.counts is None:
        return axis.cells[members], axis.weights[members]
    most = tf.cast(tf.reduce_max(axis.counts[members]), tf.int32)
    return axis.cells[members, :, :most], axis.weights[members, :, :most]

"""Whole numbers where a GPU can use them, and picking by them.

With a GPU, TensorFlow computes in the host's memory what is int32, and on the device what is int64. So what has an
entry per box, anchor or cell is int64; sizes of tensors, which are known on the host, are computed there.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import tensorflow as tf

from dh_keras.modeling.ops.machine import for_gpu, pad_rows

# A GPU adds up a long row in one of its many processors, and many short rows at once.
SHORT_ROW = 1024


def on_host() -> AbstractContextManager:
    """Where arithmetic of sizes runs, and what only a CPU does. Call `tf.shape` of what is on the device outside of it:
    it would fetch the whole tensor.
    """
    return tf.device("CPU:0")


def count_up(count: int | tf.Tensor, dtype: tf.DType = tf.int64) -> tf.Tensor:
    """The numbers 0 .. count - 1 on the device; count is an integer scalar, such as an entry of a shape."""
    with on_host():  # where the operation wants it
        count = tf.cast(count, dtype)
    return tf.range(tf.zeros([], dtype), count, tf.ones([], dtype))


def running_sum(values: tf.Tensor) -> tf.Tensor:
    """Of integers [N], each with all before it: [N]."""
    if not for_gpu():
        return tf.cumsum(values)
    number = tf.shape(values)[0]
    with on_host():
        rows = (number + SHORT_ROW - 1) // SHORT_ROW
        padded = rows * SHORT_ROW
    sums = tf.cumsum(tf.reshape(pad_rows(values, padded), [-1, SHORT_ROW]), axis=1)
    sums += tf.cumsum(sums[:, -1], exclusive=True)[:, None]
    return tf.reshape(sums, [-1])[:number]


def map_sizes(maps: Sequence[tf.Tensor]) -> tf.Tensor:
    """Rows and columns of feature maps [B, H, W, C]: int64 [maps, 2], on the host."""
    sizes = [tf.shape(features)[1:3] for features in maps]
    with on_host():
        return tf.cast(tf.stack(sizes), tf.int64)


def pick(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Of each row of values [R, K, ...] the entry at its index (integers [R]): [R, ...].

    The gradient of `tf.gather` with batch_dims would compute shapes on the device and fetch them.
    """
    return tf.gather_nd(values, tf.stack([count_up(tf.shape(values)[0]), tf.cast(index, tf.int64)], axis=1))

"""Random numbers that depend on a key and on their place in the code, and on nothing else."""

import tensorflow as tf


class Draws:
    """A sequence of keys and numbers from one key.

    The n-th draw that is written down gives the same value for the same key, whatever runs beside it and whichever
    branches are taken. The body of a loop is written down once, so draw before the loop, for all its turns.

    Args:
        key: int64[2].
    """

    def __init__(self, key: tf.Tensor):
        self._key = key
        self._written = 0

    def key(self) -> tf.Tensor:
        """Return int64[2], a new key."""
        self._written += 1
        return tf.random.experimental.stateless_fold_in(self._key, self._written)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> tf.Tensor:
        """Return float32[], from low to high."""
        return low + (high - low) * tf.random.stateless_uniform([], self.key(), alg="philox")

    def integer(self, count: int | tf.Tensor) -> tf.Tensor:
        """Return int32[], from 0 to count - 1."""
        return tf.random.stateless_uniform([], self.key(), 0, tf.cast(count, tf.int32), tf.int32, alg="philox")

    def sign(self) -> tf.Tensor:
        """Return float32[], -1 or 1."""
        return tf.where(self.uniform() < 0.5, -1.0, 1.0)

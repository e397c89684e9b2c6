"""Seeded sampling of a fixed number of anchors or RoIs per image.

Every image has its own seed, so what is sampled from it does not depend on its place in a batch or on the replica.
"""

import tensorflow as tf

from dh_keras.modeling.ops.indexing import on_host

# Where seeds of runs and steps do not reach.
_DRAW_BIT = 60


def image_seeds(seed: int, step: tf.Tensor, image_ids: tf.Tensor, *, draw: int = 0) -> tf.Tensor:
    """Stateless seeds [B, 2] from the run's seed, the step and the images' ids (int64 [B]).

    Give each draw of a step a number of its own, 0 to 3: no draw of any step and image then has the seed of another.
    """
    first = tf.constant(seed, tf.int64) * 1_000_003 + tf.cast(step, tf.int64) + tf.constant(draw << _DRAW_BIT, tf.int64)
    return tf.stack([tf.fill(tf.shape(image_ids), first), image_ids], axis=1)


def max_foreground(size: int, foreground_fraction: float) -> int:
    """The most foreground that `sample_balanced` draws per image."""
    return int(size * foreground_fraction + 1e-6)


def sample_balanced(
    foreground: tf.Tensor, background: tf.Tensor, seeds: tf.Tensor, *, size: int, foreground_fraction: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draw candidates uniformly without replacement: foreground up to its share, then background.

    Args:
        foreground: bool [B, N].
        background: bool [B, N]; never True where foreground is.
        seeds: int64 [B, 2], one per image.
        size: number to draw per image.
        foreground_fraction: at most this share of size is foreground.

    Returns:
        indices int64 [B, S], foreground first, S = min(size, N); is_foreground bool [B, S]; valid bool [B, S]. Fewer
        candidates than S leave invalid entries at the end of a row.
    """
    count = tf.shape(foreground)[1]
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_uniform([count], seed),
        seeds,
        fn_output_signature=tf.TensorSpec([None], tf.float32),
    )
    drawn = tf.minimum(size, count)
    most = tf.minimum(max_foreground(size, foreground_fraction), drawn)
    foreground_noise, foreground_indices = tf.math.top_k(tf.where(foreground, noise, -1.0), k=most)
    background_noise, background_indices = tf.math.top_k(tf.where(background, noise, -1.0), k=drawn)
    indices = tf.concat([tf.cast(x, tf.int64) for x in (foreground_indices, background_indices)], axis=1)
    valid = tf.concat([foreground_noise, background_noise], axis=1) >= 0.0
    # Move what was drawn to the front, foreground first, and cut to size.
    _, order = tf.math.top_k(tf.cast(valid, tf.float32), k=drawn)  # of equals the first comes first
    order = tf.cast(order, tf.int64)
    with on_host():
        most = tf.cast(most, tf.int64)
    is_foreground = order < most
    valid = tf.gather(valid, order, batch_dims=1)
    return tf.gather(indices, order, batch_dims=1), is_foreground & valid, valid

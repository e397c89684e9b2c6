"""The six losses (paper, section 4.3; Fast R-CNN, section 2.3), each a sum divided by a given normalizer.

Normalizers are numbers of sampled anchors or RoIs, foreground and background alike. They are arguments so that the
caller can count over all replicas.
"""

from collections.abc import Mapping

import tensorflow as tf

from dh_keras.modeling.constants import LOSSES
from dh_keras.modeling.ops.indexing import pick


def loss_weights(head_weights: Mapping[str, float]) -> dict[str, float]:
    """Weight of each of the six losses by its name, from those of the heads' losses as a config has them."""
    return {name: head_weights.get(short, 1.0) for short, name in LOSSES.items()}


def smooth_l1(errors: tf.Tensor, *, beta: float) -> tf.Tensor:
    """Elementwise 0.5 * e^2 / beta where |e| < beta, else |e| - 0.5 * beta; |e| for beta 0."""
    magnitude = tf.abs(errors)
    if beta == 0:
        return magnitude
    return tf.where(magnitude < beta, 0.5 * errors * errors / beta, magnitude - 0.5 * beta)


def objectness_loss(logits: tf.Tensor, is_foreground: tf.Tensor, valid: tf.Tensor, normalizer: tf.Tensor) -> tf.Tensor:
    """Sigmoid cross entropy of sampled anchors.

    Args:
        logits: float32 [B, S].
        is_foreground: bool [B, S], the label.
        valid: bool [B, S], False for padding.
        normalizer: float32 scalar, at least 1.

    Returns:
        float32 scalar.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(is_foreground, logits.dtype), logits)
    return tf.reduce_sum(tf.where(valid, entropy, 0.0)) / normalizer


def box_loss(
    deltas: tf.Tensor, box_targets: tf.Tensor, is_foreground: tf.Tensor, normalizer: tf.Tensor, *, beta: float
) -> tf.Tensor:
    """Smooth L1 of foreground deltas, summed over the four coordinates.

    Args:
        deltas: float32 [..., 4].
        box_targets: float32 [..., 4].
        is_foreground: bool [...].
        normalizer: float32 scalar, at least 1.
        beta: see `smooth_l1`.

    Returns:
        float32 scalar.
    """
    errors = tf.where(is_foreground[..., None], deltas - box_targets, 0.0)
    return tf.reduce_sum(smooth_l1(errors, beta=beta)) / normalizer


def class_loss(logits: tf.Tensor, class_targets: tf.Tensor, normalizer: tf.Tensor) -> tf.Tensor:
    """Softmax cross entropy of RoIs: logits float32 [R, K + 1], class_targets integers [R]; a scalar."""
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(class_targets, logits)
    return tf.reduce_sum(entropy) / normalizer


def class_specific_deltas(deltas: tf.Tensor, class_targets: tf.Tensor) -> tf.Tensor:
    """Deltas of each RoI's own class: [R, K, 4] to [R, 4]; background rows are arbitrary but finite."""
    return pick(deltas, tf.minimum(class_targets, deltas.shape[1] - 1))

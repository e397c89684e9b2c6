"""What is measured: a detector with random weights that behaves like a trained one, and an image for it.

With plain random weights one pyramid level has all the best proposals and every RoI has the same class scores. Here the
levels have features of one size and the classes differ, so that NMS leaves as many proposals as a trained network's and
the number of RoIs with a score above the threshold can be chosen.
"""

import numpy as np
import tensorflow as tf

from dh_keras.benchmark.case import make_images
from dh_keras.config.schema import ModelConfig
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.constants import ROI_LEVELS
from dh_keras.modeling.double_head_rcnn import DoubleHeadRCNN
from dh_keras.modeling.folding import inference_copy

# Deviation of the class logits over RoIs: the best of 80 classes then has some tenths of the probability.
LOGIT_DEVIATION = 2.0


def build_model(
    config: ModelConfig, *, num_classes: int, precision: str, batch: dict[str, tf.Tensor]
) -> DoubleHeadRCNN:
    """Build the detector that is measured, from seeded random weights, as it is served.

    Args:
        config: the detector.
        num_classes: K, without background.
        precision: "float32" or "bfloat16", see `inference_copy`.
        batch: from `make_batch`; levels and classes differ as described above on these images.
    """
    detector = assemble_detector(config, num_classes=num_classes)
    _spread_scores(detector, batch)
    return inference_copy(detector, precision=precision)


def make_batch(*, height: int, width: int, batch: int) -> dict[str, tf.Tensor]:
    """Seeded noise: images uint8 [batch, height, width, 3] without padding, and image_sizes int32 [batch, 2]."""
    images = make_images(height=height, width=width, batch=batch)
    return {"images": tf.constant(images), "image_sizes": tf.constant([[height, width]] * batch)}


def _spread_scores(detector: DoubleHeadRCNN, batch: dict[str, tf.Tensor]) -> None:
    """Rescale the last FPN convolutions and the class predictors."""
    pyramid = detector.extract_features(batch, training=False)
    for level, conv in zip(ROI_LEVELS, detector.fpn.outputs, strict=True):
        deviation = float(tf.math.reduce_std(tf.cast(pyramid[level], tf.float32)))
        conv.kernel.assign(conv.kernel / deviation)
        conv.bias.assign(conv.bias / deviation)
    pyramid = detector.extract_features(batch, training=False)
    _, rois, image_index = detector.propose_rois(pyramid, batch["image_sizes"], training=False)
    for spec in detector.variant.heads:
        if spec.classes:
            head = detector.heads[spec.name]
            features = detector.roi_align[spec.kind](pyramid, rois, image_index, training=False)
            _spread_logits(head.predictors.class_predictor, head(features)["class_logits"])


def _spread_logits(predictor, logits: tf.Tensor) -> None:
    """Give the logits [R, K + 1] of a linear layer a mean of zero in each class and the deviation wanted over all."""
    mean = tf.reduce_mean(logits, axis=0)
    scale = LOGIT_DEVIATION / float(tf.math.reduce_std(logits - mean))
    predictor.kernel.assign(predictor.kernel * scale)
    predictor.bias.assign((predictor.bias - mean) * scale)


def threshold_for(best_scores: np.ndarray, survivors: int) -> float:
    """A score threshold that exactly so many RoIs exceed, halfway between two scores so that rounding cannot matter.

    Args:
        best_scores: float32 [R], the highest class probability of each RoI.
        survivors: 0..R.
    """
    ranked = np.sort(best_scores)[::-1]
    above = ranked[survivors - 1] if survivors > 0 else 1.0
    below = ranked[survivors] if survivors < len(ranked) else 0.99 * ranked[-1]
    return float((np.float64(above) + np.float64(below)) / 2.0)

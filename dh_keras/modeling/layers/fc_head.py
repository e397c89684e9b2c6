"""The fully connected head (paper, figure 1)."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.layers.predictors import BoxPredictors


@keras.saving.register_keras_serializable(package="dh_keras")
class FCHead(keras.layers.Layer):
    """Flatten (rows, columns, channels), two fully connected layers with ReLU, then predictors.

    Args:
        channels: width of both layers.
        num_classes: K, without background.
        classes: whether it predicts class logits.
        boxes: whether it predicts box deltas.

    Examples:
        >>> roi_features = keras.Input([7, 7, 32])
        >>> outputs = FCHead(channels=64, num_classes=3, classes=True, boxes=False)(roi_features)
        >>> keras.Model(roi_features, outputs).output["class_logits"].shape
        (None, 4)
    """

    mixes_rois = False  # what an RoI gets does not depend on the others

    def __init__(self, *, channels: int, num_classes: int, classes: bool, boxes: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels = channels
        self.fc1 = keras.layers.Dense(channels, activation="relu", name="fc1")
        self.fc2 = keras.layers.Dense(channels, activation="relu", name="fc2")
        self.predictors = BoxPredictors(num_classes=num_classes, classes=classes, boxes=boxes, name="predictors")

    def build(self, input_shape: tuple) -> None:
        """Create the weights, from [R, 7, 7, C]."""
        self.fc1.build((None, input_shape[1] * input_shape[2] * input_shape[3]))
        self.fc2.build((None, self.channels))
        self.predictors.build((None, self.channels))

    def call(self, roi_features: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """Predict from float [R, 7, 7, C], the same in training; see `BoxPredictors`."""
        _, height, width, channels = roi_features.shape
        vectors = tf.reshape(roi_features, [-1, height * width * channels])
        return self.predictors(self.fc2(self.fc1(vectors)))

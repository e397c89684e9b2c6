"""The last layers of a second-stage head: class logits and class-specific box deltas."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="dh_keras")
class BoxPredictors(keras.layers.Layer):
    """One or two linear layers on a head's feature vector, in float32 whatever the precision of the others.

    Logits and deltas in half precision cost accuracy, and these layers cost next to no time.

    Args:
        num_classes: K, without background.
        classes: build the class predictor (normal 0.01).
        boxes: build the box predictor (normal 0.001).

    Examples:
        >>> vectors = keras.Input([64])
        >>> outputs = BoxPredictors(num_classes=3, classes=True, boxes=True)(vectors)
        >>> model = keras.Model(vectors, outputs)
        >>> model.output["class_logits"].shape, model.output["box_deltas"].shape
        ((None, 4), (None, 3, 4))
    """

    def __init__(self, *, num_classes: int, classes: bool, boxes: bool, **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_classes = num_classes
        self.class_predictor = self.box_predictor = None
        if classes:
            self.class_predictor = keras.layers.Dense(
                num_classes + 1,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                dtype="float32",
                name="class_predictor",
            )
        if boxes:
            self.box_predictor = keras.layers.Dense(
                4 * num_classes,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.001),
                dtype="float32",
                name="box_predictor",
            )

    def build(self, input_shape: tuple) -> None:
        """Create the weights."""
        for predictor in (self.class_predictor, self.box_predictor):
            if predictor is not None:
                predictor.build(input_shape)

    def call(self, vectors: tf.Tensor) -> dict[str, tf.Tensor]:
        """Predict from float [R, C].

        Returns:
            "class_logits" float32 [R, K + 1], background last, and "box_deltas" float32 [R, K, 4]; those that exist.
        """
        outputs = {}
        if self.class_predictor is not None:
            outputs["class_logits"] = self.class_predictor(vectors)
        if self.box_predictor is not None:
            outputs["box_deltas"] = tf.reshape(self.box_predictor(vectors), [-1, self.num_classes, 4])
        return outputs

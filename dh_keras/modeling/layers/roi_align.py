"""RoIAlign as a layer: which level, what scale, which sampling (Mask R-CNN, section 3)."""

from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.ops.boxes import scale_boxes
from dh_keras.modeling.ops.roi_align import roi_align, roi_levels


@keras.saving.register_keras_serializable(package="dh_keras")
class RoIAlign(keras.layers.Layer):
    """Pool 7x7 features for each RoI from its pyramid level.

    Args:
        scale: RoIs are scaled by this about their centres before pooling; the level is that of the unscaled RoI.
        sampling_ratio: samples per bin and axis, 0 for adaptive.
        geometry: "continuous" or "legacy", see `ops.roi_align`.
    """

    def __init__(self, *, scale: float, sampling_ratio: int, geometry: str, **kwargs: Any):
        # Under mixed precision Keras would cast the RoIs too, and half precision has steps of a pixel above 1024.
        super().__init__(autocast=False, **kwargs)
        self.scale = scale
        self.sampling_ratio = sampling_ratio
        self.geometry = geometry
        self.supports_jit = False  # the sparse product has no XLA kernel

    def call(
        self, pyramid: dict[str, tf.Tensor], rois: tf.Tensor, image_index: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """Pool.

        Args:
            pyramid: "P2".."P5", float [B, H, W, C].
            rois: float32 [R, 4], pixels of the resized image; R may be 0.
            image_index: integers [R], image of each RoI.
            training: False leaves the gradient out of the graph.

        Returns:
            float [R, 7, 7, C].
        """
        return roi_align(
            pyramid,
            scale_boxes(rois, self.scale),
            image_index,
            roi_levels(rois),
            sampling_ratio=self.sampling_ratio,
            geometry=self.geometry,
            differentiable=training is not False,
        )

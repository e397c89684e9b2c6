"""RoIAlign as a layer: which level, what scale, which sampling (Mask R-CNN, section 3)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dh_keras.modeling.constants import ROI_LEVELS, ROI_OUTPUT_SIZE
from dh_keras.modeling.ops.boxes import scale_boxes
from dh_keras.modeling.ops.roi_align import roi_align, roi_levels


@keras.saving.register_keras_serializable(package="dh_keras")
class RoIAlign(keras.layers.Layer):
    """Pool features of one size for each RoI from its pyramid level.

    Args:
        scale: RoIs are scaled by this about their centres before pooling; the level is that of the unscaled RoI.
        sampling_ratio: samples per bin and axis, 0 for adaptive.
        geometry: "continuous" or "legacy", see `ops.roi_align`.
        output_size: cells along both axes; a number for a square.
        levels: keys of the pyramid that are pooled from, from the finest to the coarsest; "P2" has a stride of 4, "P3"
            one of 8 and so on. An RoI of 224 pixels belongs to P4, one of half the side to P3; one that belongs to a
            level that is not there is pooled from the next finer one, or from the first.

    Examples:
        >>> pyramid = {"P3": keras.Input([None, None, 8]), "P5": keras.Input([None, None, 8])}
        >>> rois, image_index = keras.Input([4]), keras.Input([], dtype="int64")
        >>> align = RoIAlign(scale=1.0, sampling_ratio=2, geometry="continuous", output_size=14, levels=("P3", "P5"))
        >>> model = keras.Model([pyramid, rois, image_index], align(pyramid, rois, image_index))
        >>> model.output.shape
        (None, 14, 14, 8)
    """

    def __init__(
        self,
        *,
        scale: float,
        sampling_ratio: int,
        geometry: str,
        output_size: int | Sequence[int] = ROI_OUTPUT_SIZE,
        levels: Sequence[str] = ROI_LEVELS,
        **kwargs: Any,
    ):
        # Under mixed precision Keras would cast the RoIs too, and half precision has steps of a pixel above 1024.
        super().__init__(autocast=False, **kwargs)
        self.scale = scale
        self.sampling_ratio = sampling_ratio
        self.geometry = geometry
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.levels = tuple(levels)
        self.supports_jit = False  # the sparse product has no XLA kernel

    def call(
        self, pyramid: dict[str, tf.Tensor], rois: tf.Tensor, image_index: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """Pool.

        Args:
            pyramid: float [B, H, W, C] for each of the levels, and any others.
            rois: float32 [R, 4], pixels of the resized image; R may be 0.
            image_index: integers [R], image of each RoI.
            training: False leaves the gradient out of the graph.

        Returns:
            float [R, *output_size, C].
        """
        return roi_align(
            pyramid,
            scale_boxes(rois, self.scale),
            image_index,
            roi_levels(rois, levels=self.levels),
            sampling_ratio=self.sampling_ratio,
            geometry=self.geometry,
            output_size=self.output_size,
            levels=self.levels,
            differentiable=training is not False,
        )

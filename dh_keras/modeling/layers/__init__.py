"""Keras layers of the detector: keyword-only explicit arguments, channels last, serialisable.

Their arguments are plain values, so Keras keeps them as the layer's config.
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"dh_keras needs Keras on TensorFlow, its backend is {keras.backend.backend()!r}; unset KERAS_BACKEND, or set "
        "it to tensorflow, before Keras is imported"
    )

from dh_keras.modeling.layers.conv_head import ConvHead, UpBlock
from dh_keras.modeling.layers.conv_norm import ConvNorm
from dh_keras.modeling.layers.fc_head import FCHead
from dh_keras.modeling.layers.fpn import FPN
from dh_keras.modeling.layers.non_local import NonLocalBlock
from dh_keras.modeling.layers.normalization import FusedBatchNormalization, SyncBatchNormalization, make_norm
from dh_keras.modeling.layers.pixel_normalization import PixelNormalization
from dh_keras.modeling.layers.predictors import BoxPredictors
from dh_keras.modeling.layers.resnet import ResidualBlock, ResNet
from dh_keras.modeling.layers.roi_align import RoIAlign
from dh_keras.modeling.layers.rpn_head import RPNHead

__all__ = [
    "FPN",
    "BoxPredictors",
    "ConvHead",
    "ConvNorm",
    "FCHead",
    "FusedBatchNormalization",
    "NonLocalBlock",
    "PixelNormalization",
    "RPNHead",
    "ResNet",
    "ResidualBlock",
    "RoIAlign",
    "SyncBatchNormalization",
    "UpBlock",
    "make_norm",
]

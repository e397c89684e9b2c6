"""Computing a layer a second time for its gradients, so that nothing inside it is kept (Chen et al. 2016)."""

import contextlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from dh_keras.modeling.layers.normalization import statistics_at_rest


def recomputed(layer: Callable[..., Any]) -> Callable[..., Any]:
    """A call of a layer that keeps its inputs only, and has the values, gradients and moving statistics of the layer's.

    Args:
        layer: takes tensors; for one call only.
    """
    passes = iter([contextlib.nullcontext()])  # the forward one; those for the gradients come later

    def run(*inputs: tf.Tensor) -> Any:
        with next(passes, statistics_at_rest()):
            return layer(*inputs)

    return tf.recompute_grad(run)

"""In which precision layers compute that are about to be made."""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def layer_precision(precision: str) -> Iterator[None]:
    """Layers that are made meanwhile, and the layers inside them, have this Keras dtype policy.

    Args:
        precision: such as "float32", "bfloat16" (weights too) or "mixed_bfloat16" (float32 weights).
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

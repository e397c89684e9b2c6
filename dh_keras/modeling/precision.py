"""What of Keras' global settings holds for the layers of a detector, whatever a user's keras.json says."""

import contextlib
from collections.abc import Iterator

import keras

from dh_keras.errors import ConfigError


@contextlib.contextmanager
def layer_precision(precision: str | keras.DTypePolicy) -> Iterator[None]:
    """Layers that are made meanwhile, and the layers inside them, have this Keras dtype policy and channels last.

    Args:
        precision: such as "float32", "bfloat16" (weights too) or "mixed_bfloat16" (float32 weights).

    Raises:
        ConfigError: where Keras takes another type than float32 for what has no policy, such as losses and metrics.
    """
    if keras.config.floatx() != "float32":
        raise ConfigError(
            f"Keras' floatx: expected float32, got {keras.config.floatx()}; correct ~/.keras/keras.json, or call "
            'keras.config.set_floatx("float32") before; train.precision is the key for mixed precision'
        )
    before, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy(precision)
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
        keras.config.set_image_data_format(data_format)

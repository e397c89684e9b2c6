"""Keras layers of the detector: keyword-only explicit arguments, channels last, serialisable."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"dh_keras needs Keras on TensorFlow, its backend is {keras.backend.backend()!r}; unset KERAS_BACKEND, or set "
        "it to tensorflow, before Keras is imported"
    )

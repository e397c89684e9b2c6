"""Keras layers of the detector: keyword-only explicit arguments, channels last, serialisable."""

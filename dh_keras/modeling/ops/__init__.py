"""Pure tensor functions of the detector: no variables, no configuration, no logging."""

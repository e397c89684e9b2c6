"""Distribution, learning rate, callbacks and resumable state."""

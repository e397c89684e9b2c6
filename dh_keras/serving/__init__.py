"""A model for TensorFlow Serving: export, warm-up, verification, clients, and a page for this machine."""

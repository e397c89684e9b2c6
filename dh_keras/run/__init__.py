"""A run on disk: its folder, its weights, its classes."""

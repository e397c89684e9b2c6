"""Annotation files of each kind as a dataset, and back."""

"""Annotations and photographs as batches."""

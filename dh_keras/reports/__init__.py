"""What one looks at before and after training: the data, the run, the heads."""

"""One training run, on one device, several, or several machines."""

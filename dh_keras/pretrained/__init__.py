"""Weights made elsewhere: the authors', MMDetection's, keras.applications', torchvision's."""

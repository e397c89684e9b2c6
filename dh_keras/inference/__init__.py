"""From photographs to detections: the detector, the served graph, drawing, prediction of many files."""

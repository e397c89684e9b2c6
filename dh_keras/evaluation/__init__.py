"""How good detections are: COCO's measures, and the combinations of the heads."""

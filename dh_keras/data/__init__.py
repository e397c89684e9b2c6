"""COCO files, image decoding and the batches of training."""

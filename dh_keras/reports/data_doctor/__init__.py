"""The data doctor: what is wrong with a COCO data set, said before training wastes a night on it."""

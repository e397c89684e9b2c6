"""What other tools write, as the COCO that everything else reads: Pascal VOC, YOLO, LabelMe, CVAT, Open Images."""

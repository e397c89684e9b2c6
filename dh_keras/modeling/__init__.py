"""The paper and nothing else: from pixels to detections, and from ground truth to losses."""

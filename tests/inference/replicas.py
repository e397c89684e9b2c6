"""Detect in a dataset on one logical CPU device and on two of them under a mirrored strategy, with the same weights.

    python tests/inference/replicas.py ANNOTATIONS IMAGES

Prints a line of JSON: the replicas, the images of every call of each kind, and whether all detections are equal.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.data.formats.coco import load_coco
from dh_keras.inference.detector import Detector
from dh_keras.modeling.builder import assemble_detector

TESTS = Path(__file__).resolve().parents[1]


def main(annotations, images):
    sys.path.insert(0, str(TESTS))
    import conftest

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])
    dataset = load_coco(annotations, images)
    config = load_config(overrides=[*conftest.TINY, "model.score_threshold=0.0"]).model
    found, report = [], {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", mirrored)):
        with strategy.scope():
            model = assemble_detector(config, num_classes=dataset.num_classes, seed=1)
        detector = Detector.from_model(model, dataset.categories, min_size=96, max_size=128)
        done = []
        found.append(detector.detect_dataset(dataset, batch_size=2, on_images=done.append)["detections"])
        report[name] = {"replicas": detector.replicas, "batches": done}
    fields = ("boxes", "scores", "classes")
    report["equal"] = [a.image_id for a in found[0]] == [b.image_id for b in found[1]] and all(
        np.array_equal(getattr(a, field), getattr(b, field)) for a, b in zip(*found, strict=True) for field in fields
    )
    report["detections"] = sum(map(len, found[0]))
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Four steps on one device and on two logical CPU devices with the same global batch; prints how far they differ.

Run by test_model.py in a process of its own.
"""

import json

import conftest
import keras
import numpy as np
import tensorflow as tf

from dh_keras.builder import build_detector
from dh_keras.config import load_config
from dh_keras.constants import LOSS_NAMES
from dh_keras.training.optimizer import RecipeSGD

STEPS = 4
# Batch statistics are those of a replica's own images; frozen and group norms make the two runs comparable.
OVERRIDES = (*conftest.TINY, "model.backbone.norm=group", "model.conv_head.norm=frozen")


def make_detector():
    detector = build_detector(load_config(overrides=OVERRIDES).model, num_classes=3)
    detector.compile(RecipeSGD(0.05, momentum=0.9, l2=1e-3, clip_norm=1.0), jit_compile=False)
    detector.optimizer.build(detector.trainable_variables)
    return detector


def fit(detector, batch):
    """Train, and return the losses of every step and the weights after the last."""
    history = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            history.append([float(logs[name]) for name in (*LOSS_NAMES, "total_loss")])
            self.model.reset_metrics()

    detector.fit(tf.data.Dataset.from_tensors(batch).repeat(STEPS), callbacks=[Keep()], shuffle=False, verbose=0)
    return np.array(history), [keras.ops.convert_to_numpy(v) for v in detector.trainable_variables]


def main():
    conftest.two_logical_devices()
    batch = conftest.make_batch()
    single = make_detector()
    start = [v.numpy() for v in single.trainable_variables]
    losses, weights = fit(single, batch)
    strategy = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])
    with strategy.scope():
        double = make_detector()
    replica_losses, replica_weights = fit(double, batch)
    relative = np.abs(replica_losses - losses) / np.maximum(np.abs(losses), 1e-3)
    report = {
        "replicas": strategy.num_replicas_in_sync,
        "steps": len(losses),
        "loss_difference": float(relative.max()),
        "weight_difference": max(float(np.abs(a - b).max()) for a, b in zip(weights, replica_weights, strict=True)),
        "largest_update": max(float(np.abs(a - b).max()) for a, b in zip(weights, start, strict=True)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Train on two logical CPU devices, with gradients that overflow on the second one in the first step.

    TF_ENABLE_ONEDNN_OPTS=0 python tests/training/overflow_on_replica.py mixed_float16

Prints a line of JSON per step: the loss scale on each replica, whether all weights and slots are finite, the largest
change of a weight, the updates so far, and whether the step before was finite. oneDNN's convolution gradients crash
when several CPU devices of one process share them.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.optimizer import RecipeSGD

STEPS = 3
TESTS = Path(__file__).resolve().parents[1]


@tf.custom_gradient
def with_gradient_times(value, factor):
    """The value itself, whose gradient is multiplied on the way back."""
    return tf.identity(value), lambda upstream: (upstream * factor, None)


def main(precision):
    sys.path.insert(0, str(TESTS))
    import conftest

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])
    config = load_config(overrides=[*conftest.TINY, "model.conv_head.norm=group", "model.backbone.norm=group"]).model
    with strategy.scope():
        detector = assemble_detector(config, num_classes=3, precision=precision)
        detector.compile(RecipeSGD(0.01, momentum=0.9, clip_norm=5.0), report="step")
    scaled = isinstance(detector.optimizer, keras.optimizers.LossScaleOptimizer)
    weighted_total = detector.weighted_total

    def overflowing_total(losses):
        total = weighted_total(losses)
        second = tf.distribute.get_replica_context().replica_id_in_sync_group == 1
        if scaled:
            first_step = detector.optimizer.dynamic_scale.value >= detector.optimizer.initial_scale
        else:
            first_step = tf.equal(detector.gradient_norm, 0.0)
        return with_gradient_times(total, tf.where(second & first_step, float("inf"), 1.0))

    detector.weighted_total = overflowing_total
    weights = [keras.ops.convert_to_numpy(v) for v in detector.trainable_variables]

    class Report(keras.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            nonlocal weights
            before, weights = weights, [keras.ops.convert_to_numpy(v) for v in detector.trainable_variables]
            scales = strategy.experimental_local_results(detector.optimizer.dynamic_scale.value) if scaled else []
            kept = [*weights, *map(keras.ops.convert_to_numpy, detector.optimizer.variables)]
            report = {
                "scales": [float(scale) for scale in scales],
                "finite": all(bool(np.isfinite(values).all()) for values in kept),
                "moved": max(float(np.abs(new - old).max()) for new, old in zip(weights, before, strict=True)),
                "updates": int(keras.ops.convert_to_numpy(detector.optimizer.iterations)),
                "finite_before": bool(np.isfinite(logs["previous_gradient_norm"])),
            }
            print(json.dumps(report))

    batches = tf.data.Dataset.from_tensors(conftest.make_batch()).repeat(STEPS)
    detector.fit(batches, steps_per_epoch=STEPS, callbacks=[Report()], verbose=0)


if __name__ == "__main__":
    main(sys.argv[1])

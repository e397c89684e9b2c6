"""Gradients that are not finite on one of two replicas, and optimizers that do not know of the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def steps_with_an_overflow(precision):
    script = Path(__file__).with_name("overflow_on_replica.py")
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    command = [sys.executable, str(script), precision]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_gradients_that_overflow_on_one_replica_halve_the_scale_on_all_and_change_no_weight():
    overflowing, *others = steps_with_an_overflow("mixed_float16")
    unchanged = {"finite": True, "moved": 0.0, "updates": 0, "finite_before": True}
    assert overflowing == {"scales": [2.0**14] * 2, **unchanged}
    assert [step["updates"] for step in others] == [1, 2]
    for step in others:
        assert step["scales"] == [2.0**14] * 2
        assert step["finite"]
        assert step["finite_before"]
        assert step["moved"] > 1e-3


def test_the_sum_of_the_gradients_is_taken_once_and_one_that_is_not_finite_changes_no_weight_on_any_replica():
    """Two logical CPUs with gradients of 1 and 2, then of 1 and infinity; an optimizer of Keras and the recipe's."""
    script = """
import keras, tensorflow as tf
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.modeling.training_step import TrainingStep
class Step(TrainingStep):
    num_classes = 1
    def _gradients_and_losses(self, batch):
        second = tf.equal(tf.distribute.get_replica_context().replica_id_in_sync_group, 1)
        return [tf.fill(variable.shape, tf.where(second, value, 1.0)) for variable in self.trainable_variables], {}
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])
for optimizer in (keras.optimizers.SGD, lambda lr: RecipeSGD(lr, momentum=0.0)):
    with strategy.scope():
        model = Step(loss_weights={}, seed=0)
        model.dense = keras.layers.Dense(2)
        model.dense.build((None, 3))
        model.compile(optimizer(0.5), report="step")
    for value in (2.0, float("inf")):
        before = keras.ops.convert_to_numpy(model.dense.kernel)
        batch = dict.fromkeys(["image_ids", "image_sizes", "gt_valid"], tf.constant([1]))
        tf.function(lambda: strategy.run(model.train_step, (batch,)), autograph=False)()
        for bias in strategy.experimental_local_results(model.dense.bias.value):
            assert bias.numpy().tolist() == [-1.5, -1.5]
        moved = keras.ops.convert_to_numpy(model.dense.kernel) - before
        print(moved.min(), moved.max(), int(model.optimizer.iterations.numpy()))
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = [[float(word) for word in line.split()] for line in run.stdout.splitlines()[-4:]]
    np.testing.assert_allclose(found, [[-1.5, -1.5, 1], [0.0, 0.0, 1]] * 2, atol=1e-6)


def test_on_replicas_the_history_has_the_means_over_the_images_of_all_and_a_loss_without_a_weight_is_refused():
    """Two logical CPUs that see ids 0 and 1, then 2 and 3; the losses are the ids."""
    script = """
import keras, tensorflow as tf
from dh_keras.modeling.training_step import TrainingStep
class Step(TrainingStep):
    num_classes = 1
    def compute_losses(self, batch, *, training):
        number = tf.reduce_mean(tf.cast(batch["image_ids"], tf.float32))
        return {name: number + 0.0 * tf.reduce_sum(self.dense.kernel) for name in names}
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])
names = ["id_loss"]
with strategy.scope():
    model = Step(loss_weights={"id_loss": 2.0}, seed=0)
    model.dense = keras.layers.Dense(2)
    model.dense.build((None, 3))
    model.compile()
ids = tf.range(4, dtype=tf.int64)
batches = tf.data.Dataset.from_tensor_slices(dict.fromkeys(["image_ids", "image_sizes", "gt_valid"], ids)).batch(2)
history = model.fit(batches, validation_data=batches.take(1), epochs=2, verbose=0).history
print(history["loss"], history["id_loss"], history["val_loss"])
names.append("new_loss")
model.compile()
try:
    model.fit(batches, verbose=0)
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    *_, history, message = run.stdout.splitlines()
    assert history == "[3.0, 3.0] [1.5, 1.5] [1.0, 1.0]"
    assert message.startswith("compute_losses returned new_loss, of which `loss_weights` says nothing; on several")

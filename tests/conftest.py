"""Settings of every test: quiet TensorFlow, two logical CPU devices, the same random numbers each time."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf


def pytest_configure():
    """Split the CPU in two, for the tests of strategies; only possible before TensorFlow's runtime starts."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def fixed_random_seed():
    keras.utils.set_random_seed(0)

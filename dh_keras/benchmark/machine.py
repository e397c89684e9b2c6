"""What the machine is and how fast it multiplies matrices: the yardstick for every other time."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from dh_keras.benchmark import process
from dh_keras.modeling.ops.machine import machine_target

GEMM_SIZE = {"cpu": 2048, "gpu": 8192}


def describe_machine() -> dict:
    """Processor, usable cores, GPU if there is one, and versions, ready for JSON."""
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "cpu": _cpu_model(),
        **({"gpu": tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown")} if gpus else {}),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def gemm_gflops(precision: str) -> float:
    """Billions of operations per second of a square matrix product, the median of several.

    A GPU's float32 product is in TensorFloat-32, as in training.

    Args:
        precision: "float32" or "bfloat16", of both factors.
    """
    size = GEMM_SIZE[machine_target()]
    factor = tf.cast(tf.random.stateless_normal([size, size], seed=[1, 2]), precision)
    product = tf.function(tf.matmul, autograph=False).get_concrete_function(factor, factor)
    return process.product_gflops(product, factor, finish=tf.test.experimental.sync_devices)


def median_ms(function: Callable, *inputs: object, repeats: int) -> tuple[Any, float]:
    """`process.median_ms` of what TensorFlow does, also on a GPU."""
    return process.median_ms(function, *inputs, repeats=repeats, finish=tf.test.experimental.sync_devices)


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, of the GPU if there is one, in millions of bytes."""
    if machine_target() == "gpu":
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    return process.peak_rss_mb()

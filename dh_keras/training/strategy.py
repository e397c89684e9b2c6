"""Distribution strategies: one device, all GPUs of a machine, or several machines."""

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from dh_keras.training.workers.cluster import read_cluster
from dh_keras.training.workers.rendezvous import meet
from dh_keras.training.workers.workers import Workers

STRATEGIES = ("none", "mirrored", "multi_worker")


@contextlib.contextmanager
def join_workers(strategy: str, *, timeout: float) -> Iterator[Workers]:
    """Find the other processes of the training; to be entered before TensorFlow does anything.

    While entered, the end of any process before its time ends all; only the chief prints to the standard output.

    Args:
        strategy: see `make_strategy`; all but "multi_worker" is a process alone.
        timeout: see `meet`.

    Raises:
        TrainingError: for a TF_CONFIG that cannot be used, and for a worker that does not come or cannot be reached.
    """
    if strategy != "multi_worker":
        yield Workers()
        return
    cluster = read_cluster()
    workers = meet(cluster, timeout=timeout)
    print(f"{cluster.name(cluster.index)}: all {workers.count} workers are there", flush=True)
    with contextlib.ExitStack() as stack:
        if not workers.is_chief:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield stack.enter_context(workers)


def find_gpus() -> list[tf.config.PhysicalDevice]:
    """The GPUs, each with memory growth; to be called before TensorFlow does anything.

    It cannot be in every notebook: then a GPU's memory stays as it is, and a line says so.
    """
    gpus = tf.config.list_physical_devices("GPU")
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        print("note: this process uses its GPUs already, so memory growth is what it was when it began to")
    return gpus


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Set memory growth on every GPU, see `find_gpus`, then make the strategy and say what it runs on.

    Args:
        name: "none" for one device, "mirrored" for a replica on every visible GPU (or one on the CPU), "multi_worker"
            for the same on every worker of TF_CONFIG; they must have joined, see `join_workers`.
    """
    gpus = find_gpus()
    if name == "none":
        strategy = tf.distribute.get_strategy()
        print(f"strategy: none, on {'one GPU' if gpus else 'the CPU'}")
        return strategy
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        kind = "GPU" if gpus else "CPU (no GPU is visible)"
        print(f"strategy: mirrored, {strategy.num_replicas_in_sync} replica(s) on {kind}")
        return strategy
    if name == "multi_worker":
        # Left to itself, TensorFlow sums over gRPC, GPUs or not.
        ways = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(implementation=ways.NCCL if gpus else ways.AUTO)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        print(f"strategy: multi_worker, {strategy.num_replicas_in_sync} replicas in all")
        return strategy
    raise ValueError(f"`name` must be one of {', '.join(STRATEGIES)}, got {name!r}")


def strategy_name(strategy: tf.distribute.Strategy) -> str:
    """What `make_strategy` was given."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return "multi_worker"
    return "mirrored" if isinstance(strategy, tf.distribute.MirroredStrategy) else "none"

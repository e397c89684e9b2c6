"""Distribution strategies: one device, all GPUs of a machine, or several machines."""

import tensorflow as tf

from dh_keras.training.cluster import read_cluster

STRATEGIES = ("none", "mirrored", "multi_worker")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Set memory growth on every GPU, then make the strategy and say what it runs on.

    Args:
        name: "none" for one device, "mirrored" for a replica on every visible GPU (or one on the CPU), "multi_worker"
            for the same on every worker of TF_CONFIG.

    Raises:
        TrainingError: when multi_worker has no usable TF_CONFIG.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
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
        read_cluster()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        print(f"strategy: multi_worker, {strategy.num_replicas_in_sync} replicas in all")
        return strategy
    raise ValueError(f"`name` must be one of {', '.join(STRATEGIES)}, got {name!r}")


def replicas_per_worker(strategy: tf.distribute.Strategy, workers: int) -> int:
    """Replicas in each of the processes that share a batch."""
    return strategy.num_replicas_in_sync // workers


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run folder."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or (resolver.task_type == "worker" and resolver.task_id == 0)


def worker_shard(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """This process' index and the number of processes that share a batch."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return 0, 1
    return resolver.task_id, len(resolver.cluster_spec().job_tasks("worker"))

"""Which kind of machine a graph is traced for. What helps only one kind stays out of the graph of the other."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import tensorflow as tf

_TARGET: ContextVar[str | None] = ContextVar("target", default=None)

# A GPU's library measures the ways to convolve once for each number of RoIs that it meets, so it shall meet few.
FEW_SIZES = tuple(64 << doublings for doublings in range(12))


def machine_target() -> str:
    """The one of `TARGETS` that this machine is."""
    return "gpu" if tf.config.list_logical_devices("GPU") else "cpu"


@contextlib.contextmanager
def traced_for(target: str) -> Iterator[None]:
    """What is traced meanwhile, in this thread, is for this one of `TARGETS`; without, for this machine."""
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)


def for_gpu() -> bool:
    """Whether what is being traced is for a machine with a GPU."""
    return (_TARGET.get() or machine_target()) == "gpu"


def few_sizes(count: tf.Tensor) -> tf.Tensor:
    """The least of `FEW_SIZES` that is not less than a number of rows, or that number if it is too large; int32 []."""
    rows = tf.constant(FEW_SIZES[0])
    for _ in FEW_SIZES[1:]:  # by operations on whole numbers that a machine with a GPU does beside it
        rows *= tf.clip_by_value((count + rows - 1) // rows, 1, 2)
    return tf.maximum(rows, count)


def pad_rows(values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """[R, ...], only R unknown in the graph, with zeros behind, up to a number of rows that is not less than R."""
    missing = rows - tf.shape(values)[0]
    # Not by tf.pad, which a GPU does not do for int64.
    return tf.concat([values, tf.zeros([missing, *values.shape[1:]], values.dtype)], axis=0)

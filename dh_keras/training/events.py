"""TensorBoard events of a run; what is written again after a checkpoint takes the place of what was there."""

import time
import weakref
from pathlib import Path

import tensorflow as tf

from dh_keras.files import writing

SessionLog = tf.compat.v1.SessionLog


class EventWriter:
    """Scalars for TensorBoard, in a new file.

    TensorBoard is told to forget what earlier files in the folder say about the steps that are written again.

    Args:
        folder: one run to TensorBoard; made if needed.
        first_step: the first one that is going to be written.
    """

    def __init__(self, folder: Path, *, first_step: int):
        self.folder = folder
        restart = tf.compat.v1.Event(
            wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)
        )
        with writing(folder), tf.device("CPU:0"):
            # What tf.summary is made of: it has no word for a restart.
            self._writer = tf.raw_ops.SummaryWriter(shared_name=f"{folder} {time.time_ns()}")
            weakref.finalize(self, _close, self._writer).atexit = False
            tf.raw_ops.CreateSummaryFileWriter(
                writer=self._writer, logdir=str(folder), max_queue=10, flush_millis=120_000, filename_suffix=".v2"
            )
            tf.raw_ops.ImportEvent(writer=self._writer, event=restart.SerializeToString())

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Add values; None is left out."""
        with writing(self.folder), tf.device("CPU:0"):
            for tag, value in values.items():
                if value is not None:
                    tf.raw_ops.WriteScalarSummary(writer=self._writer, step=step, tag=tag, value=tf.constant(value))

    def flush(self) -> None:
        """See that everything is in the file."""
        with writing(self.folder):
            tf.raw_ops.FlushSummaryWriter(writer=self._writer)


def _close(writer: tf.Tensor) -> None:
    with tf.init_scope():  # nobody knows when this is called: it may be while a graph is traced
        tf.raw_ops.CloseSummaryWriter(writer=writer)

"""TensorBoard events of a run: written as training goes, cut back to a checkpoint when it is resumed."""

from pathlib import Path

import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from dh_keras.files import replace_atomically, writing

STEP_PREFIX = "step/"


class EventWriter:
    """Scalars for TensorBoard.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        with writing(folder):
            self._writer = tf.summary.create_file_writer(str(folder))

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Add values; None is left out."""
        with writing(self.folder), self._writer.as_default(step=step):
            for name, value in values.items():
                if value is not None:
                    tf.summary.scalar(name, value)

    def flush(self) -> None:
        """See that everything is in the file."""
        with writing(self.folder):
            self._writer.flush()


def drop_events_after(folder: Path, *, step: int, recorded_step: int) -> None:
    """Leave what was written up to a checkpoint, so that nothing is there twice when it is written again.

    Args:
        folder: of the event files.
        step: of the checkpoint; later events whose tag starts with `STEP_PREFIX` go.
        recorded_step: end of the last recorded epoch; later other events go.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        records = _read_records(path)
        kept = [record for record in records if _is_kept(Event.FromString(record), step, recorded_step)]

        def write(partial: Path, kept: list[bytes] = kept) -> None:
            with tf.io.TFRecordWriter(str(partial)) as writer:
                for record in kept:
                    writer.write(record)

        replace_atomically(path, write)


def _is_kept(event: Event, step: int, recorded_step: int) -> bool:
    by_step = any(value.tag.startswith(STEP_PREFIX) for value in event.summary.value)
    return event.step <= (step if by_step else recorded_step)


def _read_records(path: Path) -> list[bytes]:
    """The records of a file up to one that was half written."""
    records = []
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            records.append(record)
    except tf.errors.DataLossError:
        pass
    return records

"""The processes that train together: they agree before they start, collect what each has found, and end together.

TensorFlow notices a worker that has died, but only inside a step, and says so in twenty lines; nothing tells the
others why. So every worker keeps a connection to the chief beside it; when one breaks or falls silent, everybody leaves
at once, with the same line. docs/scale_out.md has the measurements.
"""

import contextlib
import os
import queue
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

from dh_keras.errors import Interrupted, TrainingError, UserError
from dh_keras.training.workers.channel import Channel, ChannelError, Message
from dh_keras.training.workers.cluster import ALONE, Cluster

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
# Parsing a large annotation file is one long call, during which Python's other threads, and the beats, stand still.
READING_SECONDS = 600.0
# How long a failed collective operation waits for the reason, which comes over the connections.
_REASON_SECONDS = 5.0
# TensorFlow names the task that it misses, or nobody when it is the chief.
_ABORTED = re.compile(r"Collective ops is aborted by(?:.*?/job:(\w+)/(?:replica:0/)?task:(\d+))?", re.DOTALL)
_RESTART = "start all workers again, with --resume if there is a checkpoint"


def leave_process(line: str) -> None:
    """Print why and end this process, whatever its other threads are waiting for."""
    sys.stdout.flush()
    print(f"\nerror: {line}", file=sys.stderr, flush=True)  # on a line of its own, not behind the progress bar
    os._exit(1)


class Workers:
    """This process among those that train together; use it as a context manager around the training.

    Leaving the context without an error waits for all others to be done; with an error it ends them.

    Args:
        cluster: who there is.
        channels: a connection to every other worker on the chief, to the chief elsewhere; none for a process alone.
        on_loss: called once with one line, in a thread of its own, when another worker has ended before its time.
    """

    def __init__(
        self,
        cluster: Cluster = ALONE,
        channels: dict[int, Channel] | None = None,
        on_loss: Callable[[str], Any] = leave_process,
    ):
        self.cluster = cluster
        self.index = cluster.index
        self.count = len(cluster.addresses)
        self._channels = channels or {}
        self._on_loss = on_loss
        self._expect_within(READING_SECONDS)
        self._inboxes = {index: queue.SimpleQueue() for index in self._channels}
        self._leaving = threading.Lock()
        self._losing = threading.Lock()
        self._left = threading.Event()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder and speaks for all."""
        return self.index == 0

    # ---------------------------------------------------------------------------------------- together

    def gather(self, payload: bytes) -> list[bytes]:
        """Collect bytes of every worker on the chief, in the order of the workers; an empty list elsewhere."""
        return [message.payload for message in self._collect(Message("gather", payload=payload))]

    def agree(self, facts: dict[str, Any]) -> None:
        """Compare what must be the same everywhere, and wait for all.

        Args:
            facts: JSON-ready values by the name that a message would call them by.

        Raises:
            TrainingError: on the chief, naming worker and difference; the others end with the same line.
        """
        given = [message.value for message in self._collect(Message("agree", facts))]
        for index, other in enumerate(given):
            _require_same(given[0], other, self.cluster.name(index))
        self.broadcast()

    def exchange(self, value: Any) -> list[Any]:
        """Every worker's JSON-ready value, in the order of the workers, on every worker. Waits for all."""
        return self.broadcast([message.value for message in self._collect(Message("exchange", value))])

    def broadcast(self, value: Any = None) -> Any:
        """The chief's value, on every worker; JSON-ready. Waits for the chief."""
        if not self.is_chief:
            return self._take(0, "broadcast").value
        self._send_all(Message("broadcast", value))
        return value

    def broadcast_bytes(self, payload: bytes = b"") -> bytes:
        """The chief's bytes, on every worker."""
        if not self.is_chief:
            return self._take(0, "bytes").payload
        self._send_all(Message("bytes", payload=payload))
        return payload

    def _collect(self, own: Message) -> list[Message]:
        if not self.is_chief:
            self._send_all(own)
            return []
        return [own, *(self._take(index, own.kind) for index in sorted(self._channels))]

    def _take(self, index: int, kind: str) -> Message:
        message = self._inboxes[index].get()
        if message is None:
            raise TrainingError(f"{self.cluster.name(index)} is gone")
        if message.kind != kind:
            raise TrainingError(
                f"{self.cluster.name(index)} is at another point of the program ({message.kind}, not {kind}); "
                "start every worker with the same command"
            )
        return message

    def _send_all(self, message: Message) -> None:
        for channel in self._channels.values():
            try:
                channel.send(message)
            except ChannelError as error:
                self._lose(f"{error}; {_RESTART}")

    # ---------------------------------------------------------------------------------------- watch

    def expect_beats(self) -> None:
        """From here on every worker must be heard of often; to be called when all have read their data."""
        self._expect_within(SILENCE_SECONDS)

    def _expect_within(self, seconds: float) -> None:
        for channel in self._channels.values():
            channel.silence = seconds

    def __enter__(self) -> "Workers":
        for index, channel in self._channels.items():
            threading.Thread(target=self._listen, args=(index, channel), daemon=True).start()
        if self._channels:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if not self._channels:
            return
        if error is None or isinstance(error, Interrupted):
            self._end_together()
        else:
            # A collective operation may fail because of a lost worker before the loss is known here.
            if isinstance(error, UserError) or not self._left.wait(_REASON_SECONDS):
                aborted = _ABORTED.search(str(error))
                if aborted:
                    self._lose(f"{self.cluster.name_of_task(*aborted.groups())} does not answer TensorFlow; {_RESTART}")
                self._tell_and_leave(f"{self.cluster.name(self.index)} stopped: {_one_line(error)}")
        for channel in self._channels.values():
            channel.close()

    def _end_together(self) -> None:
        self._collect(Message("done"))
        if self.is_chief:
            self._left.set()  # from here on the others may close their connections
            self._send_all(Message("bye"))
        else:
            self._take(0, "bye")

    def _listen(self, index: int, channel: Channel) -> None:
        """Sort incoming messages, until the other side ends."""
        while True:
            try:
                message = channel.receive()
            except ChannelError as error:
                self._lose(f"{error}; {_RESTART}")
                self._inboxes[index].put(None)
                return
            if message.kind == "stopped":
                self._lose(message.value)
                self._inboxes[index].put(None)
                return
            if message.kind == "bye":
                self._left.set()
            if message.kind != "beat":
                self._inboxes[index].put(message)
            if message.kind == "bye":
                return

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            self._send_all(Message("beat"))

    def _lose(self, line: str) -> None:
        with self._losing:  # whoever leaves for this reason is missed when it has been said
            if self._tell_and_leave(line):
                self._on_loss(line)

    def _tell_and_leave(self, line: str) -> bool:
        """Tell the others why this process ends; False when it is ending already."""
        with self._leaving:
            if self._left.is_set():
                return False
            self._left.set()
        for channel in self._channels.values():
            with contextlib.suppress(ChannelError):  # that one is gone
                channel.send(Message("stopped", line))
        return True


def _require_same(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> None:
    different = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if different:
        key = different[0]
        more = f" (and {len(different) - 1} more: {', '.join(different[1:4])})" if different[1:] else ""
        raise TrainingError(
            f"{key}: {name} has {_short(theirs.get(key))}, the chief {_short(ours.get(key))}{more}; "
            "start every worker with the same command, package and files"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}".rstrip(": ")

"""How the workers find each other, before TensorFlow, which would wait for a missing one without saying which.

Every worker listens on its own address of TF_CONFIG and calls the chief. When all have called, each tries to reach each
other, as collective operations will. The connections to the chief stay open; the listening ends, so that TensorFlow
can have the port.
"""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator

from dh_keras.errors import TrainingError
from dh_keras.training.workers.channel import Channel, ChannelError, Message
from dh_keras.training.workers.cluster import Cluster
from dh_keras.training.workers.workers import Workers

# A worker that is up answers within this many seconds.
ANSWER_SECONDS = 10.0
_RETRY_SECONDS = 0.2


def meet(cluster: Cluster, *, timeout: float) -> Workers:
    """Wait for all workers of a cluster and make sure that each reaches each.

    Args:
        cluster: who is expected.
        timeout: seconds to wait for a worker that has not started yet.

    Raises:
        TrainingError: naming the worker that did not come or cannot be reached, and from where.
    """
    if len(cluster.addresses) == 1:
        return Workers(cluster)
    deadline = time.monotonic() + timeout
    with _listening(cluster) as calls:
        if cluster.index == 0:
            channels = _wait_for_calls(cluster, calls, deadline, timeout)
            _check_paths_as_chief(cluster, channels)
        else:
            channels = {0: _call_chief(cluster, deadline, timeout)}
            _check_paths(cluster, channels[0], timeout)
    return Workers(cluster, channels)


# -------------------------------------------------------------------------------------------------- listening


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator["queue.SimpleQueue[tuple[int, Channel]]"]:
    """Answer on this worker's port; yields the calls of workers that want to stay connected."""
    _, port = cluster.host_and_port(cluster.index)
    try:
        server = socket.create_server(("", port), backlog=128)
    except OSError as error:
        raise TrainingError(
            f"TF_CONFIG: {cluster.name(cluster.index)} cannot listen on its port ({error.strerror}); "
            "is another program or another worker using it?"
        ) from error
    calls: queue.SimpleQueue[tuple[int, Channel]] = queue.SimpleQueue()

    def answer(connection: socket.socket) -> None:
        channel = Channel(connection, "a caller")
        with contextlib.suppress(ChannelError):
            channel.send(Message("worker", cluster.index))
            message = channel.receive(ANSWER_SECONDS)
            if message.kind == "stay":
                calls.put((int(message.value), channel))
                return
        channel.close()

    def serve() -> None:
        with contextlib.suppress(OSError):  # the server was closed
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield calls
    finally:
        # Closing alone leaves a thread in accept(), and the port taken.
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


def _wait_for_calls(
    cluster: Cluster, calls: "queue.SimpleQueue[tuple[int, Channel]]", deadline: float, timeout: float
) -> dict[int, Channel]:
    channels: dict[int, Channel] = {}
    while len(channels) < len(cluster.addresses) - 1:
        try:
            index, channel = calls.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            missing = [cluster.name(i) for i in range(1, len(cluster.addresses)) if i not in channels]
            raise _refuse(
                channels,
                f"{', '.join(missing)} did not call the chief within {timeout:g} seconds; is it running, with this "
                "TF_CONFIG and its own task.index, and does the network let it reach the chief?",
            ) from None
        channel.peer = cluster.name(index)
        if index in channels:
            raise _refuse({**channels, -1: channel}, f"TF_CONFIG: two processes call themselves {cluster.name(index)}")
        channels[index] = channel
    return channels


def _call_chief(cluster: Cluster, deadline: float, timeout: float) -> Channel:
    while True:
        try:
            channel = _call(cluster, 0)
            channel.send(Message("stay", cluster.index))
            return channel
        except ChannelError as error:
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"{error} within {timeout:g} seconds; it is the chief: is it running, and does the network let "
                    f"{cluster.name(cluster.index)} reach it?"
                ) from error
        time.sleep(_RETRY_SECONDS)


def _call(cluster: Cluster, index: int) -> Channel:
    """Connect to a worker and make sure that it is the one."""
    name = cluster.name(index)
    try:
        connection = socket.create_connection(cluster.host_and_port(index), timeout=ANSWER_SECONDS)
    except OSError as error:
        raise ChannelError(f"{name} did not answer ({(error.strerror or str(error)).lower()})") from error
    channel = Channel(connection, name)
    answer = channel.receive(ANSWER_SECONDS)
    if answer.kind != "worker" or answer.value != index:
        channel.close()
        raise TrainingError(
            f"TF_CONFIG: {name} is expected at this address, but worker {answer.value} answers there; give every "
            "worker the same list and its own task.index"
        )
    return channel


# ------------------------------------------------------------------------------------------------------ paths


def _unreachable(cluster: Cluster) -> str | None:
    """The first worker that this one cannot reach, in a sentence; the connection to the chief is there already."""
    for index in range(1, len(cluster.addresses)):
        if index != cluster.index:
            try:
                _call(cluster, index).close()
            except (ChannelError, TrainingError) as error:
                return f"{cluster.name(cluster.index)} cannot reach another worker: {error}; open this port to it"
    return None


def _check_paths_as_chief(cluster: Cluster, channels: dict[int, Channel]) -> None:
    try:
        for channel in channels.values():
            channel.send(Message("reach"))
        faults = [_unreachable(cluster)]
        longest = ANSWER_SECONDS * (len(cluster.addresses) + 1)
        faults += [channels[index].receive(longest).value for index in sorted(channels)]
    except ChannelError as error:
        raise _refuse(channels, f"{error} while the workers were looking for each other") from error
    fault = next(filter(None, faults), None)
    if fault:
        raise _refuse(channels, fault)
    for channel in channels.values():
        channel.send(Message("go"))


def _check_paths(cluster: Cluster, chief: Channel, timeout: float) -> None:
    try:
        _require(chief.receive(timeout + ANSWER_SECONDS), "reach")
        chief.send(Message("reached", _unreachable(cluster)))
        _require(chief.receive(ANSWER_SECONDS * (len(cluster.addresses) + 2)), "go")
    except ChannelError as error:
        raise TrainingError(f"{error} while the workers were looking for each other") from error


def _require(message: Message, kind: str) -> None:
    if message.kind != kind:
        raise TrainingError(str(message.value))


def _refuse(channels: dict[int, Channel], line: str) -> TrainingError:
    """Tell everybody who has called, and return the error for this process."""
    for channel in channels.values():
        with contextlib.suppress(ChannelError):
            channel.send(Message("stopped", line))
        channel.close()
    return TrainingError(line)

"""How the workers find each other, before TensorFlow, which would wait for a missing one without saying which.

Every worker listens on its own address of TF_CONFIG and calls the chief. When all have called, each tries to reach each
other, as collective operations will. The connections to the chief stay open; the listening ends, so that TensorFlow
can have the port. Whoever else calls meanwhile gets neither memory nor time of the workers, and, where they share a
token, no place among them.
"""

import collections
import contextlib
import hmac
import os
import queue
import secrets
import socket
import threading
import time

from dh_keras.errors import TrainingError
from dh_keras.training.workers.channel import STRANGERS_LIMITS, Channel, ChannelError, Message
from dh_keras.training.workers.cluster import Cluster
from dh_keras.training.workers.workers import Workers

TOKEN = "DH_KERAS_CLUSTER_TOKEN"
# A worker that is up answers within this many seconds.
ANSWER_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_BACKLOG = 128
# Callers that have not said who they are; when more come, the first of them have to go.
_MOST_STRANGERS = 64


def meet(cluster: Cluster, *, timeout: float) -> Workers:
    """Wait for all workers of a cluster and make sure that each reaches each.

    Args:
        cluster: who is expected; with the same environment variable DH_KERAS_CLUSTER_TOKEN, if any.
        timeout: seconds to wait for a worker that has not started yet.

    Raises:
        TrainingError: naming the worker that did not come or cannot be reached, and from where.
    """
    if len(cluster.addresses) == 1:
        return Workers(cluster)
    deadline = time.monotonic() + timeout
    with _Reception(cluster) as reception:
        if cluster.index == 0:
            channels = _wait_for_calls(cluster, reception, deadline, timeout)
            _check_paths_as_chief(cluster, channels)
        else:
            channels = {0: _call_chief(cluster, deadline, timeout)}
            _check_paths(cluster, channels[0], timeout)
    return Workers(cluster, channels)


def _proof(challenge: str, index: int) -> str:
    """Show that one knows the token without sending it."""
    return hmac.new(os.environ.get(TOKEN, "").encode(), f"{challenge} {index}".encode(), "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------- listening


class _Reception:
    """Answers on this worker's port while entered.

    Args:
        cluster: who may call.

    Attributes:
        calls: (worker, connection) of those that want to stay connected to the chief.
        refused: the last caller with another token, in words.
    """

    def __init__(self, cluster: Cluster):
        self.calls: queue.SimpleQueue[tuple[int, Channel]] = queue.SimpleQueue()
        self.refused: str | None = None
        self._cluster = cluster
        self._strangers: collections.deque[Channel] = collections.deque()
        self._over = threading.Event()

    def __enter__(self) -> "_Reception":
        own, (_, port) = self._cluster.index, self._cluster.host_and_port(self._cluster.index)
        try:
            self._server = _listen(port)
        except OSError as error:
            raise TrainingError(
                f"TF_CONFIG: {self._cluster.name(own)} cannot listen on its port ({error.strerror}); "
                "is another program or another worker using it?"
            ) from error
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        # Closing alone leaves a thread in accept(), and the port taken.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for channel in list(self._strangers):
            channel.close()

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                connection, address = self._server.accept()
                peer = f"a caller from {address[0].removeprefix('::ffff:')}"
                channel = Channel(connection, peer, silence=ANSWER_SECONDS)
            except OSError:  # the server was closed, the caller has gone, or there are too many open files
                self._over.wait(_RETRY_SECONDS)
                continue
            self._strangers.append(channel)
            if len(self._strangers) > _MOST_STRANGERS:
                self._strangers.popleft().close()
            threading.Thread(target=self._answer, args=(channel,), daemon=True).start()

    def _answer(self, channel: Channel) -> None:
        index = None
        with contextlib.suppress(ChannelError):
            challenge = secrets.token_hex(16)
            channel.send(Message("worker", [self._cluster.index, challenge]))
            index = self._worker_who_stays(channel, challenge)
        with contextlib.suppress(ValueError):  # it had to go already
            self._strangers.remove(channel)
        if index is None:
            channel.close()
        else:
            self.calls.put((index, channel))

    def _worker_who_stays(self, channel: Channel, challenge: str) -> int | None:
        kind, value, _ = channel.receive(STRANGERS_LIMITS)
        if self._cluster.index or kind != "stay" or not isinstance(value, list) or len(value) != 2:
            return None
        index, proof = value
        if type(index) is not int or not 0 < index < len(self._cluster.addresses):
            return None
        if not hmac.compare_digest(ascii(proof), ascii(_proof(challenge, index))):
            self.refused = channel.peer
            channel.send(Message("stopped", f"{TOKEN}: {self._cluster.name(index)} has another one than the chief"))
            return None
        return index


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        # IPv6 may be switched off; if the port is taken, the next line says so.
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    return socket.create_server(("", port), backlog=_BACKLOG)


def _wait_for_calls(cluster: Cluster, reception: _Reception, deadline: float, timeout: float) -> dict[int, Channel]:
    channels: dict[int, Channel] = {}
    while len(channels) < len(cluster.addresses) - 1:
        try:
            index, channel = reception.calls.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            missing = [cluster.name(i) for i in range(1, len(cluster.addresses)) if i not in channels]
            refused = f" ({reception.refused} had another {TOKEN})" if reception.refused else ""
            raise _refuse(
                channels,
                f"{', '.join(missing)} did not call the chief within {timeout:g} seconds{refused}; is it running, "
                "with this TF_CONFIG and its own task.index, and does the network let it reach the chief?",
            ) from None
        channel.peer = cluster.name(index)
        if index in channels:
            raise _refuse({**channels, -1: channel}, f"TF_CONFIG: two processes call themselves {cluster.name(index)}")
        channels[index] = channel
    return channels


def _call_chief(cluster: Cluster, deadline: float, timeout: float) -> Channel:
    while True:
        try:
            channel, challenge = _call(cluster, 0)
            channel.send(Message("stay", [cluster.index, _proof(challenge, cluster.index)]))
            return channel
        except ChannelError as error:
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"{error} within {timeout:g} seconds; it is the chief: is it running, and does the network let "
                    f"{cluster.name(cluster.index)} reach it?"
                ) from error
        time.sleep(_RETRY_SECONDS)


def _call(cluster: Cluster, index: int) -> tuple[Channel, str]:
    """Connect to a worker and make sure that it is the one; its challenge too."""
    name = cluster.name(index)
    try:
        connection = socket.create_connection(cluster.host_and_port(index), timeout=ANSWER_SECONDS)
    except OSError as error:
        raise ChannelError(f"{name} did not answer ({(error.strerror or str(error)).lower()})") from error
    channel = Channel(connection, name, silence=ANSWER_SECONDS)
    answer = channel.receive(STRANGERS_LIMITS)
    there, challenge = answer.value if isinstance(answer.value, list) and len(answer.value) == 2 else (None, "")
    if answer.kind != "worker" or there != index:
        channel.close()
        raise TrainingError(
            f"TF_CONFIG: {name} is expected at this address, but worker {there} answers there; give every "
            "worker the same list and its own task.index"
        )
    return channel, str(challenge)


# ------------------------------------------------------------------------------------------------------ paths


def _unreachable(cluster: Cluster) -> str | None:
    """The first worker that this one cannot reach, in a sentence; the connection to the chief is there already."""
    for index in range(1, len(cluster.addresses)):
        if index != cluster.index:
            try:
                _call(cluster, index)[0].close()
            except (ChannelError, TrainingError) as error:
                return f"{cluster.name(cluster.index)} cannot reach another worker: {error}; open this port to it"
    return None


def _check_paths_as_chief(cluster: Cluster, channels: dict[int, Channel]) -> None:
    try:
        for channel in channels.values():
            channel.send(Message("reach"))
        faults = [_unreachable(cluster)]
        for index in sorted(channels):
            channels[index].silence = ANSWER_SECONDS * (len(cluster.addresses) + 1)
            faults.append(channels[index].receive().value)
    except ChannelError as error:
        raise _refuse(channels, f"{error} while the workers were looking for each other") from error
    fault = next(filter(None, faults), None)
    if fault:
        raise _refuse(channels, fault)
    for channel in channels.values():
        channel.send(Message("go"))


def _check_paths(cluster: Cluster, chief: Channel, timeout: float) -> None:
    try:
        chief.silence = timeout + ANSWER_SECONDS
        _require(chief.receive(STRANGERS_LIMITS), "reach")
        chief.send(Message("reached", _unreachable(cluster)))
        chief.silence = ANSWER_SECONDS * (len(cluster.addresses) + 2)
        _require(chief.receive(STRANGERS_LIMITS), "go")
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

"""One TCP connection between two workers, and the messages that go over it: JSON, with bytes beside it if need be."""

import contextlib
import json
import socket
import struct
import threading
import time
from multiprocessing.connection import wait
from typing import Any, NamedTuple

_HEADER = struct.Struct(">4sIQ")
_MAGIC = b"DHK2"
# Text and bytes of one message.
STRANGERS_LIMITS = (1 << 16, 0)
_WORKERS_LIMITS = (1 << 26, 1 << 32)
_PIECE = 1 << 20
_LOOK_SECONDS = 0.5
# The kernel asks a silent peer's kernel whether the connection still is there, and gives it up after 30 seconds,
# however busy the two processes are.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


class Message(NamedTuple):
    """What one worker tells another.

    Args:
        kind: what it is about.
        value: JSON-ready.
        payload: bytes that are not JSON.
    """

    kind: str
    value: Any = None
    payload: bytes = b""


class ChannelError(Exception):
    """The other side is gone, silent for too long, or no worker of this package."""


class Channel:
    """Messages to and from one other process; sending is safe from several threads, receiving from one.

    Args:
        connection: an open TCP socket.
        peer: what messages to people call the other side, such as "worker 1 (10.0.0.2:12345)".

    Attributes:
        silence: `receive` gives up when nothing at all arrives for this many seconds; another thread may change it.
    """

    def __init__(self, connection: socket.socket, peer: str, *, silence: float):
        self.peer = peer
        self.silence = silence
        self._connection = connection
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # not every system has them all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            ChannelError: when the other side is gone.
        """
        text = json.dumps([message.kind, message.value]).encode()
        header = _HEADER.pack(_MAGIC, len(text), len(message.payload))
        try:
            with self._sending:
                for part in (memoryview(header + text), memoryview(message.payload)):
                    # In pieces: a time limit is for each, not for all of a long message.
                    for start in range(0, len(part), _PIECE):
                        self._connection.sendall(part[start : start + _PIECE])
        except OSError as error:
            raise ChannelError(f"{self.peer} is gone ({_reason(error)})") from error

    def receive(self, limits: tuple[int, int] = _WORKERS_LIMITS) -> Message:
        """Wait for the next message.

        Args:
            limits: longest text and longest payload, in bytes. What is longer is not read.

        Raises:
            ChannelError: when the other side is gone or silent, or speaks another language.
        """
        try:
            start = time.monotonic()
            while not wait([self._connection], min(self.silence, _LOOK_SECONDS)):
                if time.monotonic() - start > self.silence:
                    raise TimeoutError
            self._connection.settimeout(self.silence)
            magic, *lengths = _HEADER.unpack(self._read(_HEADER.size))
            if magic != _MAGIC or any(length > limit for length, limit in zip(lengths, limits, strict=True)):
                raise self._stranger()
            kind, value = json.loads(self._read(lengths[0]))
            return Message(str(kind), value, self._read(lengths[1]))
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # the limit here, not the kernel's
                raise ChannelError(f"{self.peer} has not answered for {self.silence:g} seconds") from error
            raise ChannelError(f"{self.peer} is gone ({_reason(error)})") from error
        except (ValueError, TypeError, RecursionError) as error:  # another kind of text than JSON of two
            raise self._stranger() from error

    def close(self) -> None:
        """Close the connection, also under a thread that is receiving."""
        with contextlib.suppress(OSError):  # closed from the other side
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _stranger(self) -> ChannelError:
        return ChannelError(f"{self.peer} is another program than dh_keras of this version")

    def _read(self, length: int) -> bytes:
        """Exactly so many bytes; memory grows with what arrives, not with what was announced."""
        parts = bytearray()
        while len(parts) < length:
            part = self._connection.recv(min(length - len(parts), _PIECE))
            if not part:
                raise ConnectionResetError("the connection was closed")
            parts += part
        return bytes(parts)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

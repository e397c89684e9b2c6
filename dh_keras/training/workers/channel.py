"""One TCP connection between two workers, and the messages that go over it: JSON, with bytes beside it if need be."""

import contextlib
import json
import socket
import struct
import threading
from typing import Any, NamedTuple

_HEADER = struct.Struct(">4sIQ")
_MAGIC = b"DHK1"
_LONGEST_TEXT = 1 << 26


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
    """

    def __init__(self, connection: socket.socket, peer: str):
        self.peer = peer
        self._connection = connection
        self._sending = threading.Lock()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            ChannelError: when the other side is gone.
        """
        text = json.dumps([message.kind, message.value]).encode()
        try:
            with self._sending:
                self._connection.sendall(_HEADER.pack(_MAGIC, len(text), len(message.payload)) + text)
                self._connection.sendall(message.payload)
        except OSError as error:
            raise ChannelError(f"{self.peer} is gone ({_reason(error)})") from error

    def receive(self, silence: float) -> Message:
        """Wait for the next message.

        Args:
            silence: give up when nothing at all arrives for this many seconds.

        Raises:
            ChannelError: when the other side is gone or silent, or speaks another language.
        """
        try:
            self._connection.settimeout(silence)
            magic, text_length, payload_length = _HEADER.unpack(self._read(_HEADER.size))
            if magic != _MAGIC or text_length > _LONGEST_TEXT:
                raise ChannelError(f"{self.peer} is another program than dh_keras of this version")
            kind, value = json.loads(self._read(text_length))
            return Message(kind, value, self._read(payload_length))
        except TimeoutError as error:
            raise ChannelError(f"{self.peer} has not answered for {silence:g} seconds") from error
        except OSError as error:
            raise ChannelError(f"{self.peer} is gone ({_reason(error)})") from error

    def close(self) -> None:
        """Close the connection, also under a thread that is receiving."""
        with contextlib.suppress(OSError):  # closed from the other side
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self._connection.recv(min(length - len(parts), 1 << 20))
            if not part:
                raise ConnectionResetError("the connection was closed")
            parts += part
        return bytes(parts)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

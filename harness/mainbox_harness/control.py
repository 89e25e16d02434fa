"""Messages between supervisor and zygote: JSON, each after its length in four bytes (little-endian)."""

import json
import socket
import struct
from typing import Any

from .frames import ChannelClosed, read_exactly

LENGTH = struct.Struct("<I")
MAX_DESCRIPTORS = 8


class SupervisorGone(Exception):
    """The supervisor is gone."""


class Control:
    """The zygote's end of the socket to the supervisor."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)

    def fileno(self) -> int:
        """Returns the descriptor, as `select.poll` requires."""
        return self.socket.fileno()

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Waits for the next message. Returns it with the descriptors that are attached to it."""
        try:
            # The descriptors come with the first byte.
            begin, descriptors, _, _ = socket.recv_fds(self.socket, LENGTH.size, MAX_DESCRIPTORS)
            begin += read_exactly(self.fileno(), LENGTH.size - len(begin))
            return json.loads(read_exactly(self.fileno(), *LENGTH.unpack(begin))), descriptors
        except (ChannelClosed, ConnectionError) as error:
            raise SupervisorGone from error

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message."""
        text = json.dumps(message).encode()
        try:
            self.socket.sendall(LENGTH.pack(len(text)) + text)
        except ConnectionError as error:
            raise SupervisorGone from error

    def detach(self) -> None:
        """Forgets the descriptor without closing it."""
        self.socket.detach()

"""Frames between supervisor and worker: one byte for the type, four for the length (little-endian), the payload."""

import os
import struct

HEADER = struct.Struct("<BI")


class ChannelClosed(Exception):
    """The supervisor is gone, or has closed the channel."""


class Channel:
    """A stream socket that carries frames."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def receive(self) -> tuple[bytes, bytearray]:
        """Waits for the next frame. Returns its type and payload."""
        kind, length = HEADER.unpack(read_exactly(self.descriptor, HEADER.size))
        return bytes([kind]), read_exactly(self.descriptor, length)

    def send(self, kind: bytes, *payload: bytes) -> None:
        """Sends a frame. The payload may be given in parts, which are not copied."""
        rest = [memoryview(HEADER.pack(kind[0], sum(map(len, payload)))), *map(memoryview, payload)]
        while rest:
            sent = os.writev(self.descriptor, rest)
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][sent:]


def read_exactly(descriptor: int, length: int) -> bytearray:
    """Reads `length` bytes, or raises ChannelClosed if there are not that many."""
    data = bytearray(length)
    rest = memoryview(data)
    while rest:
        received = os.readv(descriptor, [rest])
        if not received:
            raise ChannelClosed
        rest = rest[received:]
    return data

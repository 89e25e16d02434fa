"""Frames between supervisor and worker: one byte of type, four bytes of length, the payload."""

import os
import struct

HEADER = struct.Struct("<BI")


class ChannelClosed(Exception):
    """The supervisor is gone, or wants nothing of us any more."""


class Channel:
    """A stream socket that carries frames."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def receive(self) -> tuple[bytes, bytearray]:
        """Waits for the next frame; returns its type and its payload."""
        kind, length = HEADER.unpack(self._read(HEADER.size))
        return bytes([kind]), self._read(length)

    def send(self, kind: bytes, *payload: bytes) -> None:
        """Sends a frame, whose payload may be in parts."""
        rest = [memoryview(HEADER.pack(kind[0], sum(map(len, payload)))), *map(memoryview, payload)]
        while rest:
            sent = os.writev(self.descriptor, rest)
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][sent:]

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            received = os.readv(self.descriptor, [rest])
            if not received:
                raise ChannelClosed
            rest = rest[received:]
        return data

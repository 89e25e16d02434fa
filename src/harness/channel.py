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

    def receive(self) -> tuple[bytes, bytes]:
        """Waits for the next frame; returns its type and its payload."""
        kind, length = HEADER.unpack(self._read(HEADER.size))
        return bytes([kind]), self._read(length)

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Sends a frame."""
        self._write(HEADER.pack(kind[0], len(payload)) + payload)

    def _read(self, length: int) -> bytes:
        chunks = bytearray()
        while len(chunks) < length:
            chunk = os.read(self.descriptor, length - len(chunks))
            if not chunk:
                raise ChannelClosed
            chunks += chunk
        return bytes(chunks)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

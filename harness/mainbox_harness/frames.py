"""Frames between supervisor and worker: one byte for the type, four for the length (little-endian), the payload."""

import os
import struct

HEADER = struct.Struct("<BI")
# How much is read at once. Most requests are shorter.
READ_BYTES = 16 * 1024
# The largest payload that is sent in one piece with its header.
COPIED_BYTES = 16 * 1024
# Before `printing` wraps it.
writev = os.writev
# The most parts that one system call takes: UIO_MAXIOV of linux/uio.h.
MOST_PARTS = 1024


class ChannelClosed(Exception):
    """The supervisor is gone, or has closed the channel."""


class Channel:
    """A stream socket that carries frames."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.received = b""
        """Bytes that were read ahead. The next frame begins with them."""

    def receive(self) -> tuple[bytes, bytes | bytearray]:
        """Waits for the next frame. Returns its type and payload."""
        while len(self.received) < HEADER.size:
            more = os.read(self.descriptor, READ_BYTES)
            if not more:
                raise ChannelClosed
            self.received += more
        kind, length = HEADER.unpack_from(self.received)
        end = HEADER.size + length
        payload = self.received[HEADER.size : end]
        self.received = self.received[end:]
        if len(payload) < length:
            # Allocated once, since the memory limit counts it.
            whole = bytearray(length)
            whole[: len(payload)] = payload
            read_into(self.descriptor, memoryview(whole)[len(payload) :])
            payload = whole
        return bytes([kind]), payload

    def send(self, kind: bytes, *payload: bytes) -> None:
        """Sends a frame. The payload may be given in parts, which are not copied if they are large."""
        length = sum(map(len, payload))
        parts = [HEADER.pack(kind[0], length), *payload]
        if length <= COPIED_BYTES:
            parts = [b"".join(parts)]
        rest = [memoryview(part) for part in parts]
        first = 0
        while first < len(rest):
            sent = writev(self.descriptor, rest[first : first + MOST_PARTS])
            while first < len(rest) and sent >= len(rest[first]):
                sent -= len(rest[first])
                first += 1
            if first < len(rest):
                rest[first] = rest[first][sent:]


def read_into(descriptor: int, rest: memoryview) -> None:
    """Fills `rest`, or raises ChannelClosed if there are not that many bytes."""
    while rest:
        received = os.readv(descriptor, [rest])
        if not received:
            raise ChannelClosed
        rest = rest[received:]

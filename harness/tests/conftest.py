"""Stands in for what the supervisor sends to a zygote."""

import ctypes
import json
import struct

from mainbox_harness.long_parts import Functions, LongParts


def numbers(items: bytes, count: int, buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    """Stands in for the machine code."""
    values = struct.unpack(f"{count}d", items)
    text = ",".join("null" if value != value else repr(value) for value in values) + ","
    return put(text.encode(), buffer, size)


def string(items: bytes, count: int, buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    """Stands in for the machine code."""
    assert len(items) == count
    return put(json.dumps(items.decode(), ensure_ascii=False)[1:-1].encode(), buffer, size)


def put(text: bytes, buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    assert len(text) <= size == len(buffer)
    buffer[: len(text)] = text  # type: ignore[assignment]
    return len(text)


LongParts.functions = Functions(numbers, string)

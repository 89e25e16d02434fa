"""The JSON of what is long in a result: lists of floats, and strings. Machine code makes it from many at once.

The bytes are the same as from `json`. Its source is `zygote/src/json.rs`.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any, ClassVar, NamedTuple

# From how many on it is faster than `json`, with the memory that its first use takes.
LONG_LIST = 1000
LONG_STRING = 100_000
# How much is encoded at once, so that the buffer stays in the caches of the processor.
FLOATS_AT_ONCE = 8192
CHARACTERS_AT_ONCE = 32_768
# What a float and a byte of a string take at most: constants of `zygote/src/json.rs`.
FLOAT_BYTES, ESCAPED_BYTES = 25, 6
BUFFER_BYTES = max(FLOATS_AT_ONCE * FLOAT_BYTES, CHARACTERS_AT_ONCE * ESCAPED_BYTES)
# The most bytes of UTF-8 that a character takes.
CHARACTER_BYTES = 4
MISSING = float("nan")


class Functions(NamedTuple):
    """The machine code: from an address and a number of items, each writes JSON to a buffer and returns its length."""

    numbers: Any
    string: Any


class LongParts:
    """The long parts of one result. Each is left out of the text that `json` makes: a mark is there instead."""

    functions: ClassVar[Functions | None] = None
    """Set in the zygote. Where there is no machine code, nothing is long."""

    def __init__(self, functions: Functions) -> None:
        """Makes a mark that no text contains by accident."""
        self.code = functions
        self.buffer = ctypes.create_string_buffer(BUFFER_BYTES)
        self.mark = os.urandom(16).hex()
        self.parts: list[list[bytes]] = []
        """Each in pieces, in the order of the text."""

    @classmethod
    def use(cls, numbers: int, string: int) -> None:
        """Sets the addresses of the machine code."""
        kind = ctypes.PYFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
        cls.functions = Functions(kind(numbers), kind(string))

    def add_floats(self, items: list[Any], *, has_none: bool) -> str:
        """Takes a list of floats, and of None if it has any. Returns its mark."""
        pieces = []
        for start in range(0, len(items), FLOATS_AT_ONCE):
            some = items[start : start + FLOATS_AT_ONCE]
            if has_none:
                some = [MISSING if item is None else item for item in some]
            length = self.code.numbers(struct.pack(f"{len(some)}d", *some), len(some), self.buffer)
            pieces.append(ctypes.string_at(self.buffer, length))
        self.parts.append([b"[", *pieces[:-1], pieces[-1][:-1], b"]"])
        return self.mark

    def add_string(self, text: str) -> str:
        """Takes a string. Returns its mark, or `text` itself if that is not valid Unicode."""
        step = CHARACTERS_AT_ONCE if text.isascii() else CHARACTERS_AT_ONCE // CHARACTER_BYTES
        pieces = [b'"']
        try:
            for start in range(0, len(text), step):
                some = text[start : start + step].encode()
                length = self.code.string(some, len(some), self.buffer)
                pieces.append(ctypes.string_at(self.buffer, length))
        except UnicodeEncodeError:
            return text
        self.parts.append([*pieces, b'"'])
        return self.mark

    def put_into(self, text: bytes) -> list[bytes]:
        """Replaces the marks. Returns the JSON in pieces."""
        around = text.split(b'"%s"' % self.mark.encode())
        return [piece for before, part in zip(around, [*self.parts, []], strict=True) for piece in (before, *part)]

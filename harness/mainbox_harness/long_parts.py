"""Encodes long lists of floats and long strings as JSON, in machine code.

The source of that is `zygote/src/json.rs`. The output is byte for byte that of `json`.
"""

from __future__ import annotations

import ctypes

# Functions, since a script may replace those of the modules.
from ctypes import create_string_buffer, string_at
from os import urandom
from struct import pack
from typing import Any, ClassVar, NamedTuple

# Shorter lists and strings go to `json`: for them, the first use of the machine code costs more than it saves.
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
    """The machine code. Each writes JSON to a buffer and returns its length.

    The arguments are an address, a number of items, and the address and the size of the buffer.
    """

    numbers: Any
    string: Any


class LongParts:
    """The long parts of one result. Each is left out of the text that `json` makes: a mark is there instead."""

    functions: ClassVar[Functions]
    """Set in the zygote."""

    def __init__(self) -> None:
        """Makes a mark that no text contains by accident."""
        self.buffer = create_string_buffer(BUFFER_BYTES)
        self.mark = urandom(16).hex()
        self.parts: list[list[bytes]] = []
        """Each in pieces, in the order of the text."""

    @classmethod
    def use(cls, numbers: int, string: int) -> None:
        """Sets the addresses of the machine code."""
        size = ctypes.c_size_t
        kind = ctypes.PYFUNCTYPE(size, ctypes.c_char_p, size, ctypes.c_void_p, size)
        cls.functions = Functions(kind(numbers), kind(string))

    def add_floats(self, items: list[Any], *, has_none: bool) -> str:
        """Takes a list of floats, and of None if it has any. Returns its mark."""
        pieces = []
        for start in range(0, len(items), FLOATS_AT_ONCE):
            some = items[start : start + FLOATS_AT_ONCE]
            if has_none:
                some = [MISSING if item is None else item for item in some]
            pieces.append(self.encoded(self.functions.numbers, pack(f"{len(some)}d", *some), len(some)))
        self.parts.append([b"[", *pieces[:-1], pieces[-1][:-1], b"]"])
        return self.mark

    def add_string(self, text: str) -> str:
        """Takes a string. Returns its mark, or `text` itself if that is not valid Unicode."""
        step = CHARACTERS_AT_ONCE if text.isascii() else CHARACTERS_AT_ONCE // CHARACTER_BYTES
        pieces = [b'"']
        try:
            for start in range(0, len(text), step):
                some = text[start : start + step].encode()
                pieces.append(self.encoded(self.functions.string, some, len(some)))
        except UnicodeEncodeError:
            return text
        self.parts.append([*pieces, b'"'])
        return self.mark

    def encoded(self, function: Any, items: bytes, count: int) -> bytes:
        """Returns what a function makes of items."""
        return string_at(self.buffer, function(items, count, self.buffer, BUFFER_BYTES))

    def put_into(self, text: bytes) -> list[bytes]:
        """Replaces the marks. Returns the JSON in pieces."""
        around = text.split(b'"%s"' % self.mark.encode())
        return [piece for before, part in zip(around, [*self.parts, []], strict=True) for piece in (before, *part)]

"""The standard output of a script. What is printed first goes to memory, since a system call for each line is slow.

The memory is shared with the supervisor, which reads what is left there when the process dies. So nothing is lost that a
script printed before it crashed or ran out of time.
"""

from __future__ import annotations

import _thread
import contextlib
import io
import os
from functools import partial, wraps
from operator import call
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

STDOUT = 1
# The functions of `os` that write to a descriptor or copy it.
WRITERS = ("write", "writev", "dup", "dup2")
write = os.write


class Stdout(io.FileIO):
    """Descriptor 1, with a buffer in `memory`. The rest of the memory is always zero: the supervisor finds the end by that."""

    def __init__(self, memory: mmap) -> None:
        super().__init__(STDOUT, "w", closefd=False)
        self.memory = memory
        self.keep = memory.write
        self.lock = _thread.RLock()
        self.close_memory: Any = (memory.tell, partial(memory.seek, 0, os.SEEK_END))

    def write(self, data: Any) -> int:
        """Keeps bytes, or writes what is kept and them."""
        try:
            return self.keep(data)
        except ValueError:  # there is no room
            return self.write_through(data)

    def write_through(self, data: Any) -> int:
        """Writes bytes, and what is kept before them."""
        with self.lock:
            self.empty()
            return super().write(data) or 0

    def flush(self) -> None:
        """Writes what is kept."""
        if self.memory.tell():
            with self.lock:
                self.empty()

    def fileno(self) -> int:
        """Returns the descriptor. Its user may write to it, so from now on nothing is kept."""
        self.keep_nothing()
        return super().fileno()

    def keep_nothing(self) -> None:
        """From now on, writes at once. For someone who follows the output live."""
        self.flush()
        self.keep = super().write

    def empty(self) -> None:
        """Writes what is kept. Called with the lock."""
        # Between the two calls, no other thread may keep anything, so Python code must not run between them. After them,
        # there is no room, and other threads wait for the lock.
        length, _ = map(call, self.close_memory)
        try:
            rest = memoryview(self.memory)[:length]
            while rest:
                rest = rest[write(STDOUT, rest) :]
        finally:
            self.memory[:length] = bytes(length)
            self.memory.seek(0)

    def order_writers(self) -> None:
        """Has the functions of `os` write what is kept before they use the descriptor themselves."""
        for name in WRITERS:
            setattr(os, name, self.ordered(getattr(os, name)))

    def ordered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that first writes what is kept if it is given descriptor 1."""

        @wraps(function)
        def ordered(*arguments: Any, **named: Any) -> Any:
            # Other arguments may be anything, such as an array, which has no single answer to a comparison.
            if any(type(argument) is int and argument == STDOUT for argument in (*arguments, *named.values())):
                self.flush()
            return function(*arguments, **named)

        return ordered

    def finish(self) -> None:
        """Writes what is kept at the end of a script, which may have closed the descriptor."""
        with contextlib.suppress(OSError):
            self.flush()

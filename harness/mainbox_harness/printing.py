"""The standard output of a script. What is printed first goes to memory, since a system call for each line is slow.

The memory is shared with the supervisor, which reads what is left there when the process dies. So nothing is lost that a
script printed before it crashed or ran out of time.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import fcntl
import io
import os
from functools import partial, wraps
from operator import call
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

STDOUT = 1
# Functions that write to a descriptor and return how much, and others that copy or close it.
WRITERS: list[tuple[Any, str]] = [(os, "write"), (os, "writev")]
OTHERS: list[tuple[Any, str]] = [(os, "dup"), (os, "dup2"), (os, "close"), (fcntl, "fcntl")]
write = os.write


class Header(ctypes.Structure):
    """What the supervisor must know to tell what it has received already: `kept_output.rs`. It follows the text."""

    _fields_ = [("leaving", ctypes.c_uint64), ("before", ctypes.c_uint64)]
    leaving: int
    """The number of bytes of the text that are being written to the descriptor."""
    before: int
    """The number of bytes that were written before them."""


class Stdout(io.FileIO):
    """Descriptor 1, with a buffer in `memory`, in front of a header. The rest of the memory is always zero.

    A signal handler can print or raise while the buffer is emptied. What it prints waits until that is done. If it raises,
    the attributes tell how much is written, and the next one who empties the buffer continues there.
    """

    def __init__(self, memory: mmap) -> None:
        super().__init__(STDOUT, "w", closefd=False)
        self.memory = memory
        self.view = memoryview(memory)
        self.zeros = memoryview(bytes(len(memory)))  # made now, since memory may have run out later
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.header = Header.from_address(start + len(memory))
        self.keep = memory.write
        self.reopens = self.is_used = True
        self.lock = _thread.RLock()
        self.close_memory: Any = (memory.tell, partial(memory.seek, 0, os.SEEK_END))
        self.end: int | None = None
        """How much is being written; None while there is room to keep something."""
        self.written = 0
        """How much of that is written."""
        self.is_busy = False
        """Whether the buffer is being emptied."""
        self.waiting: list[bytes] = []
        """What signal handlers have printed meanwhile."""

    def write(self, data: Any) -> int:
        """Keeps bytes, or writes what is kept and them."""
        try:
            return self.keep(data)
        except ValueError:  # there is no room
            return self.write_through(data)

    def write_through(self, data: Any) -> int:
        """Writes bytes, and what is kept before them."""
        with self.lock:
            if self.is_busy:
                self.waiting.append(bytes(data))
                return len(self.waiting[-1])
            self.empty()
            count = super().write(data) or 0
            self.header.before += count
            return count

    def flush(self) -> None:
        """Writes what is kept."""
        if self.is_used and self.memory.tell():
            with self.lock:
                self.empty()

    def fileno(self) -> int:
        """Returns the descriptor. Its user may write to it, so from now on nothing is kept."""
        self.keep_nothing()
        return super().fileno()

    def close(self) -> None:
        """Closes the stream, but not the descriptor."""
        self.keep_nothing()
        super().close()

    def keep_nothing(self) -> None:
        """From now on, writes at once."""
        with self.lock:
            self.reopens = False
            try:
                self.empty()
            finally:
                self.keep = super().write

    def empty(self) -> None:
        """Writes what is kept. Called with the lock."""
        if self.is_busy:
            return
        self.is_busy = True
        try:
            self.leave()
        finally:
            self.is_busy = False
        while self.waiting:
            self.write(self.waiting.pop(0))

    def leave(self) -> None:
        """Writes what is kept, from where an exception has interrupted it.

        Python runs signal handlers after calls and at the ends of loops. `map` makes its calls when its values are assigned,
        so no handler can raise between a call and the assignment of what it returned.
        """
        if self.end is None and self.is_used:
            # Then there is no room, and other threads wait for the lock.
            self.end, _ = map(call, self.close_memory)
        while (end := self.end) is not None and self.written < end:
            self.header.leaving = end
            (count,) = map(write, (STDOUT,), (self.view[self.written : end],))
            self.written += count
        if end is not None:
            self.view[:end] = self.zeros[:end]
            self.header.leaving = 0
            self.header.before += end
            self.end, self.written = None, 0
            if self.reopens:
                self.memory.seek(0)
            else:
                self.is_used = False

    def order_writers(self) -> None:
        """Has other functions write what is kept before they use the descriptor themselves."""
        for module, name in (*WRITERS, *OTHERS):
            setattr(module, name, self.ordered(getattr(module, name), counts=(module, name) in WRITERS))

    def ordered(self, function: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
        """Returns a function that first writes what is kept if it is given descriptor 1.

        `counts` says that it returns the number of bytes that it has written to its first argument.
        """

        @wraps(function)
        def ordered(*arguments: Any, **named: Any) -> Any:
            # Other arguments may be anything, such as an array, which has no single answer to a comparison.
            if not any(type(argument) is int and argument == STDOUT for argument in (*arguments, *named.values())):
                return function(*arguments, **named)
            self.flush()
            result = function(*arguments, **named)
            if counts:
                self.header.before += result
            return result

        return ordered

    def finish(self) -> None:
        """Writes what is kept at the end of a script, which may have closed the descriptor or the memory."""
        with contextlib.suppress(OSError, ValueError):
            if self.is_used and self.memory.tell() == 0 and not self.waiting:
                return  # Nothing is kept. Changing an attribute would make the worker copy a page.
            self.keep_nothing()

"""The state of the process that every script finds: its streams, its environment and fresh random numbers.

The zygote makes it once. A worker only takes it over, since what a worker makes it must also page in.
"""

from __future__ import annotations

import _thread
import ctypes
import gc
import io
import os
import sys
from typing import TYPE_CHECKING, Any, Self

from .failure import type_and_message
from .warmup import LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Callable

# So that 64 threads fit into the default memory limit, which counts the whole stack of each.
THREAD_STACK_BYTES = 1 << 20
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "USER": "script",
    "LOGNAME": "script",
} | LIBRARIES
# Python's own.
RECURSION_LIMIT = 1000
# The directory of a worker, as an environment variable. It differs where workers have no mount namespace.
DIRECTORIES = ("HOME", "TMPDIR")
# The state of numpy's Mersenne Twister: 624 words and the place of the next one
# (numpy/random/src/mt19937/mt19937.h). At the end, the generator makes new words first.
WORDS_BYTES = 624 * 4
AT_THE_END = (624).to_bytes(4, sys.byteorder)


class ProcessState:
    """Made in the zygote, taken over by each of its workers."""

    def __init__(self, scratch: str, after_fork: list[Callable[[], object]]) -> None:
        """Changes the zygote, which needs its own state no longer.

        `scratch` is where the directories of workers probably are. `after_fork` are functions that modules want to be called
        in a worker.
        """
        self.scratch = scratch
        self.after_fork = after_fork
        self.numpy = NumpyState.find()
        sys.stdin, sys.stdout, sys.stderr = streams = make_streams()
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        sys.argv = ["script.py"]
        sys.path.append(scratch)  # last, so that a file of the request hides no library
        self.enter(scratch)
        _thread.stack_size(THREAD_STACK_BYTES)
        sys.setrecursionlimit(RECURSION_LIMIT)  # packages change it

    def enter(self, scratch: str) -> None:
        """Makes `scratch` the directory of the script."""
        for name in DIRECTORIES:
            os.environ[name] = scratch
        sys.path[-1] = scratch

    def take_over(self, scratch: str) -> None:
        """In a worker: gives the script its directory and fresh random numbers."""
        if scratch != self.scratch:
            self.enter(scratch)
        # Python does the same after `os.fork()`, which has not forked this process.
        if "random" in sys.modules:
            sys.modules["random"].seed()
        if "threading" in sys.modules:  # the zygote may have imported it later
            sys.modules["threading"].main_thread()._native_id = _thread.get_native_id()
        for function in self.after_fork:
            try:
                function()
            except BaseException as error:  # Python reports it and continues, too
                print(type_and_message(error), file=sys.stderr)
        # numpy does not seed itself after a fork.
        if self.numpy is not None:
            self.numpy.renew()
        elif "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        gc.enable()


def make_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper]:
    """Makes the standard streams of workers.

    Streams keep what they find out about their descriptors, so these are now what they will be there: /dev/null and pipes.
    """
    kept = [os.dup(descriptor) for descriptor in range(3)]
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for descriptor, source in enumerate((null, writer, writer)):
            os.dup2(source, descriptor)
        stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
        return stdin, unbuffered(1, "surrogateescape"), unbuffered(2, "backslashreplace")
    finally:
        for descriptor, source in enumerate(kept):
            os.dup2(source, descriptor)
        for descriptor in (*kept, reader, writer, null):
            os.close(descriptor)


def unbuffered(descriptor: int, errors: str) -> io.TextIOWrapper:
    """Returns a text stream that writes at once, so that printed text is not lost if the process dies."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, newline="\n", write_through=True)


class NumpyState:
    """The state of numpy's global generator, which is renewed in place: `seed()` takes longer than most scripts."""

    def __init__(self, address: int) -> None:
        self.address = address

    @classmethod
    def find(cls) -> Self | None:
        """Returns the state, if numpy is imported and renewing has the effect that it should have."""
        random: Any = sys.modules.get("numpy.random")
        try:
            before = random.get_state(legacy=False)
            if before["bit_generator"] != "MT19937" or before["state"]["key"].nbytes != WORDS_BYTES:
                return None  # what is at the address has another size
            state = cls(random.mtrand._rand._bit_generator.ctypes.state_address)
            words = state.renew()
            found = random.get_state(legacy=False)
        except Exception:  # another version of numpy has other names
            return None
        is_renewed = found["state"]["key"].tobytes() == words and found["state"]["pos"] == 624
        return state if is_renewed and found["has_gauss"] == 0 else None

    def renew(self) -> bytes:
        """Fills the state with random bytes, and returns them."""
        words = os.urandom(WORDS_BYTES)
        ctypes.memmove(self.address, words + AT_THE_END, WORDS_BYTES + len(AT_THE_END))
        return words

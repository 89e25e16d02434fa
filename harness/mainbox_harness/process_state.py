"""The state of the process that every script finds: its streams, its environment and fresh random numbers.

The zygote makes it once, and a worker only takes it over: whatever a worker makes costs it copied pages.
"""

from __future__ import annotations

import _thread
import ctypes
import gc
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from .failure import type_and_message
from .printing import Stdout
from .warmup import LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

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
# The state of a Mersenne Twister: 624 words and the place of the next one (numpy/random/src/mt19937/mt19937.h). At the
# end, the generator makes new words first.
WORDS_BYTES = 624 * 4
AT_THE_END = (624).to_bytes(4, sys.byteorder)


class ProcessState:
    """Made in the zygote, taken over by each of its workers."""

    def __init__(self, scratch: str, after_fork: list[Callable[[], object]], output: mmap) -> None:
        """Changes the zygote, which no longer needs its own state.

        `scratch` is where the directories of workers probably are. `after_fork` are functions that modules want to be called
        in a worker. `output` is the memory for what is printed.
        """
        self.scratch = scratch
        self.after_fork = after_fork
        self.find_generators()
        self.stdout, streams = make_streams(output)
        self.stdout.order_writers()
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = streams
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        sys.argv = ["script.py"]
        sys.path.append(scratch)  # last, so that a file of the request hides no library
        self.enter(scratch)
        _thread.stack_size(THREAD_STACK_BYTES)
        sys.setrecursionlimit(RECURSION_LIMIT)  # packages change it

    def find_generators(self) -> None:
        """Looks for the generators of random numbers, after the zygote has imported something."""
        self.generators = {"numpy.random": find_numpy(), "random": find_random()}

    def enter(self, scratch: str) -> None:
        """Makes `scratch` the directory of the script."""
        for name in DIRECTORIES:
            os.environ[name] = scratch
        sys.path[-1] = scratch

    def take_over(self, scratch: str) -> None:
        """In a worker: gives the script its directory and fresh random numbers."""
        if scratch != self.scratch:
            self.enter(scratch)
        for name, state in self.generators.items():
            if state is not None:
                state.renew()
            elif name in sys.modules:
                sys.modules[name].seed()
        # Python does the same after `os.fork()`, which has not forked this process.
        if "threading" in sys.modules:  # the zygote may have imported it later
            sys.modules["threading"].main_thread()._native_id = _thread.get_native_id()
        for function in self.after_fork:
            try:
                function()
            except BaseException as error:  # Python reports it and continues, too
                print(type_and_message(error), file=sys.stderr)
        gc.enable()


def make_streams(output: mmap) -> tuple[Stdout, tuple[io.TextIOWrapper, io.TextIOWrapper, io.TextIOWrapper]]:
    """Makes the standard streams of workers, and what is below the second one.

    Streams keep what they find out about their descriptors, so for a moment these are what they will be in a worker:
    /dev/null and pipes.
    """
    kept = [os.dup(descriptor) for descriptor in range(3)]
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for descriptor, source in enumerate((null, writer, writer)):
            os.dup2(source, descriptor)
        stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
        stdout, stderr = Stdout(output), io.FileIO(2, "w", closefd=False)
        return stdout, (stdin, unbuffered(stdout, "surrogateescape"), unbuffered(stderr, "backslashreplace"))
    finally:
        for descriptor, source in enumerate(kept):
            os.dup2(source, descriptor)
        for descriptor in (*kept, reader, writer, null):
            os.close(descriptor)


def unbuffered(raw: io.FileIO, errors: str) -> io.TextIOWrapper:
    """Returns a text stream that keeps nothing itself, so that printed text is not lost if the process dies."""
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, newline="\n", write_through=True)


class TwisterState:
    """The state of a Mersenne Twister, which is renewed in place: `seed()` takes longer than most scripts."""

    def __init__(self, words: int, position: int) -> None:
        """`words` and `position` are addresses."""
        self.words = words
        self.position = position

    def holds(self, words: bytes, position: int) -> bool:
        """Whether this is the state at the addresses. Reads them only."""
        at = int.from_bytes(ctypes.string_at(self.position, len(AT_THE_END)), sys.byteorder)
        return at == position and ctypes.string_at(self.words, WORDS_BYTES) == words

    def renew(self) -> None:
        """Fills the state with random bytes."""
        ctypes.memmove(self.words, os.urandom(WORDS_BYTES), WORDS_BYTES)
        ctypes.memmove(self.position, AT_THE_END, len(AT_THE_END))


def find_numpy() -> TwisterState | None:
    """Returns the state of numpy's global generator, if numpy is imported and is as known."""
    random: Any = sys.modules.get("numpy.random")
    try:
        random.seed()  # so that it keeps no normally distributed number
        known = random.get_state(legacy=False)
        words, position = known["state"]["key"].tobytes(), known["state"]["pos"]
        if known["bit_generator"] != "MT19937" or known["has_gauss"] != 0 or len(words) != WORDS_BYTES:
            return None
        address = random.mtrand._rand._bit_generator.ctypes.state_address
        state = TwisterState(address, address + WORDS_BYTES)
        return state if state.holds(words, position) else None
    except Exception:  # another version of numpy has other names
        return None


def find_random() -> TwisterState | None:
    """Returns the state of the generator of the module `random`, if it is imported and is as known."""
    random: Any = sys.modules.get("random")
    try:
        random.seed()
        _, (*words, position), normal = random.getstate()
        # struct RandomObject of Modules/_randommodule.c: the position comes first.
        start = object.__basicsize__
        size = start + len(AT_THE_END) + WORDS_BYTES
        if normal is not None or type(random._inst) is not random.Random or random.Random.__basicsize__ < size:
            return None
        address = id(random._inst) + start
        state = TwisterState(address + len(AT_THE_END), address)
        expected = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
        return state if state.holds(expected, position) else None
    except Exception:  # another version of Python has another structure
        return None

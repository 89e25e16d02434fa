"""The loop of the zygote and the lockdown of its workers: machine code that the supervisor sends, without a C library.

Its source is the package `zygote/`. It holds no address, so it runs wherever it is mapped.
"""

from __future__ import annotations

import binascii
import ctypes
import fcntl
import mmap
import os
from typing import Any

from .libc import libc, map_file, raise_errno

# Numbers from the kernel's headers. Python has these only if it was built where the C library has them.
MFD_CLOEXEC, MFD_ALLOW_SEALING = 1, 2
F_ADD_SEALS = 1033
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
# Why the loop ended. A negative number is an errno.
QUIET, WORKER, WARM_WORKER, GONE = 0, 1, 2, 3
# As a time of quiet: the loop never ends for lack of orders.
NEVER = -1


class Native:
    """The loop. Made once, in the zygote."""

    def __init__(self, parts: dict[str, Any]) -> None:
        """Maps the code. `parts` is `protocol::Native` of the supervisor."""
        start = map_code(binascii.a2b_base64(parts["code"]), parts["memfd_create"])
        self.memory = ctypes.create_string_buffer(parts["memory_bytes"])
        policy = binascii.a2b_base64(parts["policy"])
        self.policy = (ctypes.c_char * len(policy)).from_buffer_copy(policy)
        # With the GIL: no other thread of Python may run during a fork.
        self.code = ctypes.PYFUNCTYPE(
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            *[ctypes.c_void_p] * 7,
            ctypes.c_int,
        )(start + parts["entry"])
        self.json = start + parts["json_numbers"], start + parts["json_string"]
        """The addresses of the functions of `long_parts`."""
        # Private to this process. In a worker, memory that it shares with the supervisor is mapped in its place.
        self.output = mmap.mmap(-1, parts["output_bytes"], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.arenas = note_arenas(start + parts["allocate_arena"], start + parts["free_arena"], parts["arenas_bytes"])
        visit = ctypes.cast(libc.dl_iterate_phdr, ctypes.c_void_p)
        self.heap = Heap(visit, ctypes.addressof(self.arenas), libc.sbrk(0), os.sysconf("SC_PAGE_SIZE"))
        self.functions = [ctypes.cast(libc[name], ctypes.c_void_p) for name in ("fork", "__errno_location")]

    def serve(self, through_python: bool, moves_heap: bool, quiet_ms: int) -> int:
        """Carries out orders. Returns why the loop ended: in the zygote, or locked down in a worker.

        `through_python` makes each fork also do what Python does for forks of an embedding program. `moves_heap` first
        moves what is allocated since this object was made into a file. Later forks are cheaper then, as long as the zygote
        does not write to it.
        """
        names = ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child")
        around = [ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p) if through_python else None for name in names]
        output = ctypes.byref(ctypes.c_char.from_buffer(self.output))
        heap = ctypes.byref(self.heap) if moves_heap else None
        end = self.code(self.memory, self.policy, len(self.policy), *self.functions, *around, output, heap, quiet_ms)
        if end < 0:
            raise OSError(-end, os.strerror(-end))
        return end

    def scratch(self) -> str:
        """In a worker: returns the path of its working directory, which its start begins with."""
        return os.fsdecode(ctypes.string_at(self.memory))


class Heap(ctypes.Structure):
    """The memory that moves: `Heap` of `zygote/src/sys.rs`."""

    _fields_ = [
        ("dl_iterate_phdr", ctypes.c_void_p),
        ("arenas", ctypes.c_void_p),
        ("start", ctypes.c_size_t),
        ("page_bytes", ctypes.c_size_t),
    ]


class ArenaAllocator(ctypes.Structure):
    """`PyObjectArenaAllocator` of Python's C API."""

    _fields_ = [("arenas", ctypes.c_void_p), ("allocate", ctypes.c_void_p), ("free", ctypes.c_void_p)]


def note_arenas(allocate: int, free: int, size: int) -> Any:
    """Has Python allocate its arenas through functions that note them in a table of this size. Returns the table."""
    arenas = ctypes.create_string_buffer(size)
    allocator = ArenaAllocator(ctypes.addressof(arenas), allocate, free)
    ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(allocator))
    return arenas


def map_code(code: bytes, memfd_create: int) -> int:
    """Maps machine code from a file that nothing can change. Returns its address. `memfd_create` is a system call."""
    name = ctypes.create_string_buffer(b"mainbox-zygote")
    descriptor = libc.syscall(memfd_create, ctypes.addressof(name), MFD_CLOEXEC | MFD_ALLOW_SEALING, 0, 0)
    if descriptor < 0:
        raise_errno()
    try:
        os.write(descriptor, code)
        fcntl.fcntl(descriptor, F_ADD_SEALS, SEALS)
        return map_file(descriptor, len(code))
    finally:
        os.close(descriptor)

"""The loop of the zygote and the lockdown of its workers: machine code that the supervisor sends, without a C library.

Its source is the package `zygote/`. It holds no address, so it runs wherever it is mapped.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Any

from .libc import libc, raise_errno

# Numbers from the kernel's headers.
PROT_READ, PROT_EXEC = 1, 4
MAP_PRIVATE = 2
MAP_FAILED = ctypes.c_void_p(-1).value
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Why the loop ended. A negative number is an errno.
QUIET, WORKER, WARM_WORKER, GONE = 0, 1, 2, 3
# As a time of quiet: the loop never ends for lack of orders.
NEVER = -1


class Native:
    """The loop. Made once, in the zygote."""

    def __init__(self, parts: dict[str, Any]) -> None:
        """Maps the code. `parts` is `protocol::Native` of the supervisor."""
        address = map_code(bytes.fromhex(parts["code"])) + parts["entry"]
        self.memory = ctypes.create_string_buffer(parts["memory_bytes"])
        policy = bytes.fromhex(parts["policy"])
        self.policy = (ctypes.c_char * len(policy)).from_buffer_copy(policy)
        # With the GIL: no other thread of Python may run during a fork.
        self.code = ctypes.PYFUNCTYPE(
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            *[ctypes.c_void_p] * 5,
            ctypes.c_int,
        )(address)
        self.functions = [ctypes.cast(libc[name], ctypes.c_void_p) for name in ("fork", "__errno_location")]

    def serve(self, through_python: bool, quiet_ms: int) -> int:
        """Carries out orders. Returns why the loop ended: in the zygote, or locked down in a worker.

        `through_python` makes each fork do what `os.fork` does.
        """
        names = ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child")
        around = [ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p) if through_python else None for name in names]
        end = self.code(self.memory, self.policy, len(self.policy), *self.functions, *around, quiet_ms)
        if end < 0:
            raise OSError(-end, os.strerror(-end))
        return end

    def scratch(self) -> str:
        """In a worker: returns the path of its working directory, which its start begins with."""
        return ctypes.string_at(self.memory).decode()


def map_code(code: bytes) -> int:
    """Maps machine code from a file that nothing can change. Returns its address."""
    descriptor = os.memfd_create("mainbox-zygote", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, code)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        address = libc.mmap(None, len(code), PROT_READ | PROT_EXEC, MAP_PRIVATE, descriptor, 0)
        if address == MAP_FAILED:
            raise_errno()
        return address
    finally:
        os.close(descriptor)

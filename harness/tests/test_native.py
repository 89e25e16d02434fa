import fcntl
import mmap
import os

from mainbox_harness import libc, native
from mainbox_harness.native import map_code


def test_code_is_mapped_so_that_it_can_be_executed_and_not_written() -> None:
    memfd_create = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
    address = map_code(b"\x90" * 5000, memfd_create)
    with open("/proc/self/maps") as maps:
        (line,) = [line for line in maps if int(line.split("-")[0], 16) == address]
    assert line.split()[1] == "r-xp"
    assert native.ctypes.string_at(address, 3) == b"\x90\x90\x90"


def test_the_constants_are_those_of_the_kernel() -> None:
    maps = (libc.PROT_READ, libc.PROT_EXEC, libc.MAP_PRIVATE)
    assert maps == (mmap.PROT_READ, mmap.PROT_EXEC, mmap.MAP_PRIVATE)
    assert (native.MFD_CLOEXEC, native.MFD_ALLOW_SEALING) == (os.MFD_CLOEXEC, os.MFD_ALLOW_SEALING)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert (fcntl.F_ADD_SEALS, seals) == (native.F_ADD_SEALS, native.SEALS)

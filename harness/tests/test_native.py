import mmap

from mainbox_harness import native
from mainbox_harness.native import map_code


def test_code_is_mapped_so_that_it_can_be_executed_and_not_written() -> None:
    address = map_code(b"\x90" * 5000)
    with open("/proc/self/maps") as maps:
        (line,) = [line for line in maps if int(line.split("-")[0], 16) == address]
    assert line.split()[1] == "r-xp"
    assert native.ctypes.string_at(address, 3) == b"\x90\x90\x90"


def test_the_constants_are_those_of_the_kernel() -> None:
    assert (native.PROT_READ, native.PROT_EXEC, native.MAP_PRIVATE) == (
        mmap.PROT_READ,
        mmap.PROT_EXEC,
        mmap.MAP_PRIVATE,
    )

"""Functions of the C library that Python does not have."""

import ctypes
import os

# Numbers from the kernel's headers.
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2
PR_SET_DUMPABLE = 4
PROT_READ, PROT_EXEC = 1, 4
MAP_PRIVATE = 2
MAP_FAILED = ctypes.c_void_p(-1).value

libc = ctypes.CDLL(None, use_errno=True)
for function in (libc.prctl, libc.syscall):
    function.argtypes = [ctypes.c_long, *[ctypes.c_ulong] * 4]
    function.restype = ctypes.c_long
libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = [ctypes.c_ssize_t]
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def mount(path: str, options: str) -> None:
    """Mounts a tmpfs."""
    # No devices and no programs: neither has a use in a directory of data.
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        raise_errno()


def unmount(path: str) -> None:
    """Unmounts what is mounted at `path`."""
    # MNT_DETACH: succeeds although an imported library still has a file open there.
    if libc.umount2(path.encode(), MNT_DETACH) != 0:
        raise_errno()


def map_file(descriptor: int, size: int) -> int:
    """Maps the beginning of a file so that it can be executed. Returns the address."""
    address = libc.mmap(None, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, descriptor, 0)
    if address == MAP_FAILED:
        raise_errno()
    return address


def become_non_dumpable() -> None:
    """Keeps other processes of the same uid from reading the memory of this one."""
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise_errno()


def raise_errno() -> None:
    """Raises the error of the last call of the C library."""
    errno = ctypes.get_errno()
    raise OSError(errno, os.strerror(errno))

"""Tries what the sandbox must refuse. Runs as a script, through the real path, before anything is served."""

import ctypes
import errno
import os
import socket

libc = ctypes.CDLL(None, use_errno=True)


def attempt(act):
    """What an attempt met: `refused` and why, or that it went through."""
    try:
        result = act()
    except OSError as error:
        return f"refused: {errno.errorcode.get(error.errno, error)}"
    return f"allowed: {result!r}"


def call(name, *arguments):
    """Calls the C library, past every Python-side check."""
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def fork():
    """Forks, and does not let a child live."""
    if (child := call("fork")) == 0:
        os._exit(0)
    return child


def execute():
    """Becomes another program. Only a refusal counts, not that there is none."""
    try:
        call("execve", b"/nowhere", None, None)
    except FileNotFoundError as error:
        return error


def read(path):
    """Reads from a file."""
    with open(path, "rb") as file:
        return len(file.read(64))


def write(path):
    """Creates a file, and takes it away again."""
    with open(path, "x"):
        pass
    os.unlink(path)


def inherited_descriptors():
    """Looks for descriptors beyond the four that a worker needs."""
    extra = []
    for descriptor in range(4, 1024):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        extra.append(descriptor)
    if extra:
        return extra
    raise OSError(errno.EBADF, "none")


def peek():
    """Reads a byte of the parent's memory."""
    byte = ctypes.create_string_buffer(1)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)
    there = (ctypes.c_size_t * 2)(id(libc), 1)
    return call("process_vm_readv", os.getppid(), here, 1, there, 1, 0)


def main():
    return {
        "open a network socket": attempt(lambda: call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)),
        "start a process": attempt(fork),
        "execute a program": attempt(execute),
        "signal another process": attempt(lambda: call("kill", os.getppid(), 0)),
        "read the memory of the parent": attempt(peek),
        "read the environment of the parent": attempt(lambda: read(f"/proc/{os.getppid()}/environ")),
        "read a file outside the interpreter": attempt(lambda: read("/etc/passwd")),
        "write outside the scratch directory": attempt(lambda: write("/tmp/mainbox-selftest")),
        "create a namespace": attempt(lambda: call("unshare", 0x10000000)),
        "use inherited descriptors": attempt(inherited_descriptors),
    }

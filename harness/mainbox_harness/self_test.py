"""The self-test: attempts what the sandbox must refuse. It runs as a script in a worker, before anything is served."""

import ctypes
import errno
import os
import socket

libc = ctypes.CDLL(None, use_errno=True)


def attempt(act):
    """Returns `refused` with the error of an attempt, or `allowed` with its result."""
    try:
        result = act()
    except OSError as error:
        return f"refused: {errno.errorcode.get(error.errno or 0, error)}"
    return f"allowed: {result!r}"


def call(name, *arguments):
    """Calls a function of the C library, which bypasses every check in Python."""
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def fork():
    """Forks. A child ends at once."""
    if (child := call("fork")) == 0:
        os._exit(0)
    return child


def execute():
    """Executes a program that does not exist. ENOENT does not count as a refusal: the kernel looked for the program."""
    try:
        call("execve", b"/nowhere", None, None)
    except FileNotFoundError as error:
        return error


def read(path):
    """Reads the beginning of a file. Returns the number of bytes."""
    with open(path, "rb") as file:
        return len(file.read(64))


def write(path):
    """Creates a file and removes it."""
    with open(path, "x"):
        pass
    os.unlink(path)


def outside():
    """Returns a path that only a sandbox refuses: in /tmp or, where that is the scratch directory, beside that."""
    shared = os.path.realpath("/tmp")
    return os.path.join(os.path.dirname(shared) if shared == os.getcwd() else shared, "mainbox-selftest")


def inherited_descriptors():
    """Returns the open descriptors besides the four of a worker."""
    extra = []
    for descriptor in range(4, 1024):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        extra.append(descriptor)
    if extra:
        return extra
    raise OSError(errno.EBADF, "no descriptor is open")


def peek():
    """Reads a byte of the memory of the parent."""
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
        "read a file outside the interpreter": attempt(lambda: read("/etc/hosts")),
        "write outside the scratch directory": attempt(lambda: write(outside())),
        "create a namespace": attempt(lambda: call("unshare", 0x10000000)),
        "use inherited descriptors": attempt(inherited_descriptors),
    }

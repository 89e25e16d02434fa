"""Says in words what the sandbox refuses, where the kernel would only say EPERM. Not the boundary: a script may remove it."""

import errno
import socket
import sys

NETWORK = "network access is not available in the sandbox"
PROGRAMS = "starting other programs is not available in the sandbox"
SIGNALS = "signalling other processes is not available in the sandbox"

REFUSED = {
    "socket.connect": NETWORK,
    "socket.bind": NETWORK,
    "socket.sendto": NETWORK,
    "socket.getaddrinfo": NETWORK,
    "socket.gethostbyname": NETWORK,
    "socket.gethostbyaddr": NETWORK,
    "socket.getnameinfo": NETWORK,
    "subprocess.Popen": PROGRAMS,
    "os.system": PROGRAMS,
    "os.exec": PROGRAMS,
    "os.fork": PROGRAMS,
    "os.forkpty": PROGRAMS,
    "os.posix_spawn": PROGRAMS,
    "os.killpg": SIGNALS,
}

FILES = "opening files is not available in this sandbox"
THREADS = "threads are not available in this sandbox"

# Events that the late limits refuse, in a sandbox that has them.
REFUSED_LATE = {"open": FILES, "os.listdir": FILES, "os.scandir": FILES, "_thread.start_new_thread": THREADS}


def explain(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: raises PermissionError for what cannot work."""
    reason = REFUSED.get(event)
    # asyncio makes itself a pair of unix sockets.
    if event == "socket.__new__" and arguments[1] not in (-1, socket.AF_UNIX):
        reason = NETWORK
    if reason is not None:
        raise PermissionError(errno.EPERM, reason)


def explain_late_limits() -> None:
    """From now on what the late limits refuse is explained too."""
    REFUSED.update(REFUSED_LATE)


def install() -> None:
    """From now on the process explains itself."""
    sys.addaudithook(explain)

"""An audit hook that explains in a sentence what the sandbox refuses, where the kernel only says EPERM.

It is not a security boundary: a script can remove it and gains nothing by that.
"""

import errno
import socket
import sys

NETWORK = "network access is not available in the sandbox"
PROGRAMS = "starting other programs is not available in the sandbox"
SIGNALS = "signaling other processes is not available in the sandbox"

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
    """Raises PermissionError for an event that the sandbox refuses."""
    reason = REFUSED.get(event)
    # asyncio needs a pair of Unix sockets.
    if event == "socket.__new__" and arguments[1] not in (-1, socket.AF_UNIX):
        reason = NETWORK
    if reason is not None:
        raise PermissionError(errno.EPERM, reason)


def explain_late_limits() -> None:
    """Also explains what the late limits refuse, from now on."""
    REFUSED.update(REFUSED_LATE)


def install() -> None:
    """Installs the hook for the rest of the process."""
    sys.addaudithook(explain)

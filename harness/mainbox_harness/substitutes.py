"""Substitutes for functions that the sandbox refuses: the same by an allowed way, or an error that says what to use."""

import errno
import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

EPOLL = "select.epoll is not available in the sandbox; use select.poll, selectors or asyncio"
MESSAGES = "sending addresses or descriptors through a socket is not available in the sandbox"
OWNED = "changing the mode or the times of a file is not available in this sandbox"


class NoEpoll:
    """Stands in for `select.epoll`: epoll of the kernel has too many faults for scripts that nobody trusts."""

    def __init__(self, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, EPOLL)

    @classmethod
    def fromfd(cls, _: int) -> NoReturn:
        """Fails like the constructor."""
        raise PermissionError(errno.EPERM, EPOLL)


def install(by_descriptor: bool) -> None:
    """Installs them for the rest of the process. With `by_descriptor`, the sandbox also refuses to change files by path."""
    select.epoll = NoEpoll  # type: ignore[assignment,misc]
    # Modules that look for epoll when they are imported find poll instead.
    selectors: Any = sys.modules.get("selectors")
    if selectors is not None:
        selectors.DefaultSelector = selectors.PollSelector
    python_socket: Any = socket.socket
    python_socket.sendmsg = sendmsg
    if by_descriptor:
        replace("chmod", chmod)
        replace("truncate", truncate)
        replace("utime", utime)


def sendmsg(self: Any, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
    """socket.sendmsg by send, as asyncio uses it. The kernel's sendmsg could also pass on descriptors."""
    if list(ancdata) or address is not None:
        raise PermissionError(errno.EPERM, MESSAGES)
    return self.send(b"".join(buffers), flags)


def replace(name: str, function: Callable[..., Any]) -> None:
    """Replaces a function of os, also in the sets that tell what it supports."""
    original = getattr(os, name)
    setattr(os, name, function)
    for supports in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if original in supports:
            supports.add(function)


def chmod(path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
    """os.chmod, by a descriptor."""
    with opened(path, os.O_RDONLY, dir_fd, follow_symlinks) as descriptor:
        # shutil.copy sets the mode that a copy has already, which must not fail where no mode can be changed.
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            explained(os.fchmod, descriptor, mode)


def truncate(path: Any, length: int) -> None:
    """os.truncate, by a descriptor."""
    with opened(path, os.O_WRONLY, None, follow_symlinks=True) as descriptor:
        os.ftruncate(descriptor, length)


def utime(path: Any, times: Any = None, *, dir_fd: int | None = None, follow_symlinks: bool = True, **ns: Any) -> None:
    """os.utime, by a descriptor."""
    with opened(path, os.O_RDONLY, dir_fd, follow_symlinks) as descriptor:
        explained(utime_by_path, descriptor, times, **ns)


utime_by_path = os.utime


@contextmanager
def opened(path: Any, flags: int, dir_fd: int | None, follow_symlinks: bool) -> Iterator[int]:
    """Opens a file for as long as the context lasts. A descriptor is used as it is."""
    if isinstance(path, int):
        yield path
        return
    follow = 0 if follow_symlinks else os.O_NOFOLLOW
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | follow
    try:
        descriptor = os.open(path, flags, dir_fd=dir_fd)
    except PermissionError:  # a file that can only be written
        descriptor = os.open(path, flags | os.O_WRONLY, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def explained(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """Calls a function and explains its refusal."""
    try:
        function(*arguments, **keywords)
    except PermissionError as error:
        raise PermissionError(errno.EPERM, OWNED) from error

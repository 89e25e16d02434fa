"""The files of a request, laid in the working directory, and those that its script leaves in `outputs/`."""

import errno
import gc
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from io import SEEK_END, FileIO, IOBase, RawIOBase
from typing import Any, Protocol

from mainbox_failure import fail

OUTPUTS = "outputs"
# What is opened is no link, and does not keep us waiting.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What a script can make of the directory, so that nothing is left in it.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)


class Workplace(Protocol):
    """Where a script finds its files and leaves its own."""

    def lay(self, name: str, content: memoryview) -> None:
        """Puts a file there."""

    def outputs(self, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files below `outputs/`, one after the other, with their names from there."""


class Directory:
    """The scratch directory as a workplace."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.home = os.stat(path)
        os.mkdir(os.path.join(path, OUTPUTS))

    def lay(self, name: str, content: memoryview) -> None:
        """Puts a file there, in the directories that its name has."""
        path = os.path.join(self.path, name)
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)

    def outputs(self, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files below `outputs/`. Links, pipes and the like are left where they are."""
        try:
            # From where we are: another script of our uid may just be taking rights to the directories above away.
            home = "." if os.path.samestat(os.stat("."), self.home) else self.path
            top = os.open(os.path.join(home, OUTPUTS), READ | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in NOT_THERE:
                return
            raise
        yield from regular_files(top, "", max_parts)


def regular_files(directory: int, prefix: str, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
    """Opens the regular files in an open directory, which it closes, and below it."""
    try:
        for name in sorted(os.listdir(directory)):
            kind = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind):
                if max_parts == 1:
                    fail("result_too_large", f"{OUTPUTS}/{prefix}{name} is nested too deeply")
                below = opened(name, os.O_DIRECTORY, directory, prefix)
                yield from regular_files(below, f"{prefix}{name}/", max_parts - 1)
            elif stat.S_ISREG(kind):
                yield prefix + name, FileIO(opened(name, 0, directory, prefix))
    finally:
        os.close(directory)


def opened(name: str, flags: int, directory: int, prefix: str) -> int:
    """Opens what is in an open directory; that it cannot be is the script's doing."""
    try:
        return os.open(name, READ | flags, dir_fd=directory)
    except OSError as error:
        fail("exception", f"{OUTPUTS}/{prefix}{name} cannot be read: {error.strerror}")


def flush_files() -> None:
    """Writes what a script has not closed, as its interpreter would at its end."""
    for thing in gc.get_objects():
        if issubclass(type(thing), IOBase):
            with suppress(Exception):  # read-only, closed, or of a class of the script's own
                thing.flush()


def collect(workplace: Workplace, limits: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Name and content of every output, or a failure that names the one that is too much."""
    collected: list[tuple[bytes, bytes]] = []
    room = limits["max_bytes"]
    for name, file in workplace.outputs(limits["max_parts"]):
        with file:
            if not collected:
                flush_files()
            if len(collected) == limits["max_files"]:
                fail("result_too_large", f"{OUTPUTS}/{name} is one too many; the limit is {limits['max_files']} files")
            length = file.seek(0, SEEK_END)
            if length > room:
                most = limits["max_bytes"]
                fail("result_too_large", f"{OUTPUTS}/{name} does not fit; all files together may have {most} bytes")
            file.seek(0)
            collected.append((checked(name, limits["max_name_bytes"]), file.read(length)))
            room -= length
    return collected


def checked(name: str, max_bytes: int) -> bytes:
    """A name that is one wherever a caller may save it."""
    if len(os.fsencode(name)) > max_bytes or not all(map(is_harmless, name)):
        fail("not_json", f"{OUTPUTS}/{name} has a name that cannot be sent")
    return name.encode()


def is_harmless(letter: str) -> bool:
    """Neither a control character, nor a separator elsewhere, nor a byte that is no text."""
    return letter >= " " and not "\x7f" <= letter <= "\x9f" and letter != "\\" and not "\ud800" <= letter <= "\udfff"

"""The working directory of a script: the files of the request, and those that the script leaves in `outputs/`."""

import errno
import os
import stat
from collections.abc import Iterator
from io import SEEK_END, FileIO, RawIOBase
from typing import Any, Protocol

from .ending import flush_files, identity
from .failure import fail

OUTPUTS = "outputs"
# What Windows does not accept in a name, and what changes the direction of text. `files.rs` has the same rule.
RESERVED = frozenset('\\:<>"|?*\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')
NUMBERED = (f"{device}{digit}" for device in ("COM", "LPT") for digit in "123456789¹²³")
# Names that Windows takes for devices, whatever their extension.
DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", *NUMBERED))
# Flags to open a file without following links or waiting for a pipe.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The errors if the script has removed or replaced the directory.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)


class WorkDir(Protocol):
    """A working directory."""

    def write(self, name: str, content: memoryview) -> None:
        """Writes a file of the request."""

    def outputs(self, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files below `outputs/`, one after the other, each with its name relative to that directory."""
        ...


class Directory:
    """The scratch directory as the working directory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.home = os.stat(path)
        os.mkdir(os.path.join(path, OUTPUTS))

    def write(self, name: str, content: memoryview) -> None:
        """Writes a file of the request, and makes the directories in its name."""
        path = os.path.join(self.path, name)
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)

    def outputs(self, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files below `outputs/`. Links, pipes and devices are skipped."""
        try:
            # Relative to the working directory, if possible: another script of the same uid may be changing the
            # permissions of the directories above it.
            home = "." if os.path.samestat(os.stat("."), self.home) else self.path
            top = os.open(os.path.join(home, OUTPUTS), READ | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in NOT_THERE:
                return
            raise
        yield from regular_files(top, "", max_parts)


def regular_files(directory: int, prefix: str, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
    """Opens the regular files in and below an open directory, and closes the directory."""
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
    """Opens an entry of an open directory. If that fails, the script is at fault."""
    try:
        return os.open(name, READ | flags, dir_fd=directory)
    except OSError as error:
        fail("exception", f"{OUTPUTS}/{prefix}{name} cannot be read: {error.strerror}")


def collect(work_dir: WorkDir, limits: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Returns name and content of every output, or raises a failure that names the one that exceeds a limit."""
    collected: list[tuple[bytes, bytes]] = []
    unwritten: dict[Any, str] | None = None
    room = limits["max_bytes"]
    for name, file in work_dir.outputs(limits["max_parts"]):
        with file:
            if unwritten is None:
                unwritten = flush_files()
            if (reason := unwritten.get(identity(file))) is not None:
                fail("exception", f"{OUTPUTS}/{name} could not be written: {reason}")
            if len(collected) == limits["max_files"]:
                fail("result_too_large", f"{OUTPUTS}/{name} exceeds the limit of {limits['max_files']} files")
            length = file.seek(0, SEEK_END)
            if length > room:
                most = limits["max_bytes"]
                sentence = f"{OUTPUTS}/{name} does not fit; the limit for all files together is {most} bytes"
                fail("result_too_large", sentence)
            file.seek(0)
            collected.append((checked(name, limits["max_name_bytes"]), file.read(length)))
            room -= length
    return collected


def checked(name: str, max_bytes: int) -> bytes:
    """Returns a name if it can be saved on every system."""
    if len(os.fsencode(name)) > max_bytes or not all(map(is_harmless, name)) or not all(map(is_part, name.split("/"))):
        fail("not_json", f"{OUTPUTS}/{name} has a name that cannot be returned")
    return name.encode()


def is_harmless(letter: str) -> bool:
    """Whether a character is neither a control character, nor reserved, nor a byte that is not text."""
    return (
        letter >= " "
        and not "\x7f" <= letter <= "\x9f"
        and letter not in RESERVED
        and not "\ud800" <= letter <= "\udfff"
    )


def is_part(part: str) -> bool:
    """Whether a part of a name can be saved on every system."""
    stem = part.partition(".")[0].rstrip().upper()
    return not part.startswith(" ") and not part.endswith((" ", ".")) and stem not in DEVICES

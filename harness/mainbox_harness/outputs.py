"""The working directory of a script: the files of the request, and those that the script leaves in `outputs/`."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import SEEK_END, BytesIO, FileIO, RawIOBase
from itertools import chain
from typing import Any, Protocol
from zlib import crc32

from .ending import flush_files, identity
from .failure import fail
from .patterns import Patterns

OUTPUTS = "outputs"
# What Windows does not accept in a name, and what changes the direction of text. `files.rs` has the same rule.
RESERVED = frozenset('\\:<>"|?*\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069')
NUMBERED = (f"{device}{digit}" for device in ("COM", "LPT") for digit in "123456789¹²³")
# Names that Windows takes for devices, whatever their extension.
DEVICES = frozenset(("CON", "PRN", "AUX", "NUL", *NUMBERED))
# Flags to open a file without following links or waiting for a pipe.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
EVERYTHING = Patterns(["**"])
# The inodes of a working directory without a file: its own and that of `outputs`.
NO_FILES = 2
# The errors if the script has removed or replaced the directory.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)


class WorkDir(Protocol):
    """A working directory."""

    def is_empty(self) -> bool:
        """Whether it certainly holds no file of the request or of the script."""
        ...

    def write(self, name: str, content: memoryview) -> None:
        """Writes a file of the request."""

    def outputs(self, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files below `outputs/`, one after the other, each with its name relative to that directory."""
        ...

    def made(self, patterns: Patterns, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files outside `outputs/` that match and that the script made or changed."""
        ...


class Directory:
    """The scratch directory as the working directory."""

    def __init__(self, path: str, *, is_file_system: bool = False) -> None:
        """`is_file_system` says that it is a file system of its own, which only this process sees."""
        self.path = path
        self.is_file_system = is_file_system
        self.home = None if is_file_system else os.stat(path)
        self.given: dict[str, tuple[tuple[int, ...], int]] = {}
        """Versions and checksums of the files of the request, to tell whether the script changed them."""
        os.mkdir(f"{path}/{OUTPUTS}")

    def is_empty(self) -> bool:
        """Whether it certainly holds no file. Then there is no need to search.

        It has two inodes then: its own and that of `outputs`. The script may have replaced `outputs` with a file, so its
        type counts too.
        """
        if not self.is_file_system:
            return False
        with contextlib.suppress(OSError):
            inodes = os.statvfs(self.path)
            return inodes.f_files - inodes.f_ffree == NO_FILES and os.path.isdir(f"{self.path}/{OUTPUTS}")
        return False

    def write(self, name: str, content: memoryview) -> None:
        """Writes a file of the request, and makes the directories in its name."""
        path = os.path.join(self.path, name)
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
        self.given[name] = version(os.stat(path)), crc32(content)

    def outputs(self, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files below `outputs/`. Links, pipes and devices are skipped."""
        beneath = f"{OUTPUTS}/"
        for path, file in regular_files(self.top(OUTPUTS), beneath, max_parts, EVERYTHING):
            if self.is_new(path, file):
                yield path.removeprefix(beneath), file

    def made(self, patterns: Patterns, max_parts: int) -> Iterator[tuple[str, RawIOBase]]:
        """Opens the regular files outside `outputs/` that match and that the script made or changed."""
        for path, file in regular_files(self.top("."), "", max_parts, patterns):
            if self.is_new(path, file):
                yield path, file

    def is_new(self, path: str, file: FileIO) -> bool:
        """Whether the script made or changed a file; otherwise closes it."""
        known, checksum = self.given.get(path, (None, 0))
        if known != version(os.fstat(file.fileno())):
            return True
        # Before Linux 6.13 the times of a file have a resolution of 4 ms, and a script can be faster.
        content = file.readall()
        if crc32(content) != checksum:
            return True
        file.close()
        return False

    def top(self, name: str) -> int | None:
        """Opens the directory `name` in the working directory, unless the script has removed or replaced it."""
        try:
            # Relative to the working directory, if possible: another script of the same uid may be changing the
            # permissions of the directories above it.
            home = "." if self.home and os.path.samestat(os.stat("."), self.home) else self.path
            return os.open(os.path.join(home, name), READ | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise


def regular_files(
    directory: int | None, prefix: str, max_parts: int, patterns: Patterns
) -> Iterator[tuple[str, FileIO]]:
    """Opens the regular files in and below an open directory that match, and closes the directory.

    `outputs` in the working directory is left to its own patterns. Links, pipes and devices are skipped. A directory that is
    nested too deeply fails the script in `outputs`, and is skipped elsewhere.
    """
    if directory is None:
        return
    try:
        for name in sorted(os.listdir(directory)):
            kind = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind):
                within = patterns.within(name)
                if not within or prefix + name == OUTPUTS:
                    continue
                if max_parts == 1:
                    if prefix.startswith(f"{OUTPUTS}/"):
                        fail("result_too_large", f"{prefix}{name} is nested too deeply")
                    continue
                below = opened(name, os.O_DIRECTORY, directory, prefix)
                yield from regular_files(below, f"{prefix}{name}/", max_parts - 1, within)
            elif stat.S_ISREG(kind) and patterns.match(name):
                yield prefix + name, FileIO(opened(name, 0, directory, prefix))
    finally:
        os.close(directory)


def opened(name: str, flags: int, directory: int | None, prefix: str) -> int:
    """Opens an entry of an open directory. If that fails, the script is at fault."""
    try:
        return os.open(name, READ | flags, dir_fd=directory)
    except OSError as error:
        fail("exception", f"{prefix}{name} cannot be read: {error.strerror}")


def version(status: os.stat_result) -> tuple[int, ...]:
    """Returns what changes when a file is written or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def collect(
    work_dir: WorkDir, patterns: Patterns, limits: dict[str, Any], pictures: list[tuple[str, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Returns name and content of every file that comes back, or raises a failure that names the one that exceeds a limit.

    These are the files in `outputs/`, those that match `patterns`, and the `pictures` that were shown or returned.
    """
    if not pictures and work_dir.is_empty():
        return []
    collection = Collection(limits)
    unwritten: dict[Any, str] | None = None
    left = ((f"{OUTPUTS}/{name}", name, file) for name, file in work_dir.outputs(limits["max_parts"]))
    matching = work_dir.made(patterns, limits["max_parts"]) if patterns else ()
    for place, name, file in chain(left, ((name, name, file) for name, file in matching)):
        with file:
            if unwritten is None:
                unwritten = flush_files()
            if (reason := unwritten.get(identity(file))) is not None:
                fail("exception", f"{place} could not be written: {reason}")
            collection.add(place, name, file)
    for name, content in pictures:
        collection.add(name, name, BytesIO(content))
    return list(collection.files.items())


class Collection:
    """The files that come back, within their limits."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.room = limits["max_bytes"]
        self.files: dict[bytes, bytes] = {}

    def add(self, place: str, name: str, file: Any) -> None:
        """Adds a file, unless there is one with that name. `place` names it in an error."""
        most = self.limits["max_files"]
        if len(self.files) == most:
            fail("result_too_large", f"{place} exceeds the limit of {most} files")
        length = file.seek(0, SEEK_END)
        if length > self.room:
            most = self.limits["max_bytes"]
            fail("result_too_large", f"{place} does not fit; the limit for all files together is {most} bytes")
        key = checked(place, name, self.limits["max_name_bytes"])
        if key not in self.files:
            file.seek(0)
            self.files[key] = file.read(length)
            self.room -= length


def checked(place: str, name: str, max_bytes: int) -> bytes:
    """Returns a name if it can be saved on every system."""
    if len(os.fsencode(name)) > max_bytes or not all(map(is_harmless, name)) or not all(map(is_part, name.split("/"))):
        fail("not_json", f"{place} has a name that cannot be returned")
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

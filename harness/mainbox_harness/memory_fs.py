"""A working directory in memory, for the tier in which a script cannot open files.

It holds the files of the request and those that the script writes. `open` and the functions of os in FUNCTIONS are
replaced, so libraries that use them work with these files: pathlib, csv, pandas, numpy, zipfile. Paths outside the
working directory go to the kernel, which refuses to open them.
"""

import builtins
import errno
import io
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ClassVar

from .failure import fail
from .patterns import Patterns

ROOT = ""
MODES = ("r", "w", "a", "x")


class Node:
    """The content of a file, which outlives its name while the file is open."""

    numbers = itertools.count(2)

    def __init__(self, content: bytes | bytearray | memoryview = b"") -> None:
        self.content = bytearray(content)
        self.number = next(Node.numbers)
        self.changed = time.time()


LIBRARY_FILES: dict[str, Node] = {}
"""Files of packages that a script may read, by their paths."""


class MemoryFile(io.RawIOBase):
    """An open file. Every open file of the same node shares the content."""

    def __init__(self, name: str, node: Node, mode: str) -> None:
        self.name = name
        self.mode = mode
        self.node = node
        self.content = node.content
        self.position = 0

    def readable(self) -> bool:
        """Whether the file was opened for reading."""
        return "r" in self.mode or "+" in self.mode

    def writable(self) -> bool:
        """Whether the file was opened for writing."""
        return "r" not in self.mode or "+" in self.mode

    def seekable(self) -> bool:
        """Returns true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads at most as many bytes as fit in `buffer`. Returns their number."""
        if not self.readable():
            raise io.UnsupportedOperation("not readable")
        part = self.content[self.position : self.position + len(buffer)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)

    def write(self, data: Any) -> int:
        """Writes all of `data`. Returns the number of bytes."""
        if not self.writable():
            raise io.UnsupportedOperation("not writable")
        data = memoryview(data).cast("B")
        if "a" in self.mode:
            self.position = len(self.content)
        if self.position > len(self.content):  # after a seek beyond the end
            self.content.extend(bytes(self.position - len(self.content)))
        self.node.changed = time.time()
        self.content[self.position : self.position + len(data)] = data
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Changes the position and returns it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.content)}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = base + offset
        return self.position

    def truncate(self, size: int | None = None) -> int:
        """Shortens the file to `size` bytes, or extends it with zeros."""
        size = self.position if size is None else size
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        return size


class Entry:
    """A file or directory as os.scandir describes it."""

    def __init__(self, folder: str, name: str, status: os.stat_result) -> None:
        self.name = name
        self.path = os.path.join(folder, name)
        self.status = status

    def __fspath__(self) -> str:
        """Returns the path."""
        return self.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Returns the status."""
        return self.status

    def inode(self) -> int:
        """Returns the inode number."""
        return self.status.st_ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether this is a file."""
        return stat.S_ISREG(self.status.st_mode)

    def is_symlink(self) -> bool:
        """Returns false."""
        return False

    def is_junction(self) -> bool:
        """Returns false."""
        return False


class Entries:
    """The iterator that os.scandir returns."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = iter(entries)

    def __iter__(self) -> Iterator[Entry]:
        """Returns itself."""
        return self

    def __next__(self) -> Entry:
        """Returns the next entry."""
        return next(self.entries)

    def __enter__(self) -> "Entries":
        """Returns itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Does nothing, since nothing is open."""

    def close(self) -> None:
        """Does nothing, since nothing is open."""


class MemoryDir:
    """Files and directories, by their paths relative to the working directory."""

    current: ClassVar["MemoryDir | None"] = None
    """The working directory of this process, once there is one."""

    def __init__(self, outputs: str) -> None:
        MemoryDir.current = self
        self.home = os.getcwd()
        self.outputs_folder = outputs
        self.folders = {ROOT, outputs}
        self.files: dict[str, Node] = {}
        self.given: dict[str, tuple[int, float]] = {}
        """Number and time of the files of the request, to tell whether the script changed them."""

    def is_empty(self) -> bool:
        """Whether there is no file."""
        return not self.files

    def write(self, name: str, content: memoryview) -> None:
        """Writes a file of the request, and makes the directories in its name."""
        folder, _ = os.path.split(name)
        while folder:
            self.folders.add(folder)
            folder, _ = os.path.split(folder)
        if name in self.files or name in self.folders:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        node = self.files[name] = Node(content)
        self.given[name] = (node.number, node.changed)

    def made(self, patterns: Patterns, max_parts: int) -> Iterator[tuple[str, io.RawIOBase]]:
        """Opens the files outside `outputs/` that match and that the script made or changed."""
        beneath = self.outputs_folder + "/"
        for name in sorted(self.files):
            fits = name.count("/") < max_parts and not name.startswith(beneath)
            if fits and self.is_new(name) and patterns.match_path(name):
                yield name, MemoryFile(name, self.files[name], "r")

    def outputs(self, max_parts: int) -> Iterator[tuple[str, io.RawIOBase]]:
        """Opens the files below `outputs/`, one after the other, each with its name relative to that directory."""
        beneath = self.outputs_folder + "/"
        for name in sorted(self.files):
            if name.startswith(beneath) and self.is_new(name):
                below = name.removeprefix(beneath)
                if below.count("/") >= max_parts:
                    fail("result_too_large", f"{'/'.join(name.split('/')[: max_parts + 1])} is nested too deeply")
                yield below, MemoryFile(name, self.files[name], "r")

    def is_new(self, name: str) -> bool:
        """Whether the script made or changed a file."""
        node = self.files[name]
        return self.given.get(name) != (node.number, node.changed)

    def place(self, path: Any) -> str | None:
        """Returns a path relative to the working directory, or None if its parent is not a directory in memory."""
        if path is None or isinstance(path, int):
            return None
        path = os.fsdecode(path)
        place = os.path.relpath(os.path.abspath(path), self.home)
        if place == ".":
            # In the sandbox the working directory is `/`, and a script that names it means the whole file system.
            return None if path.startswith("/") else ROOT
        return place if place in self.folders or os.path.dirname(place) in self.folders else None

    def open(
        self, place: str, path: Any, mode: str, buffering: int, text: tuple[str | None, str | None, str | None]
    ) -> Any:
        """Opens a file like the builtin open. `text` is encoding, errors and newline."""
        kinds = [kind for kind in MODES if kind in mode]
        if len(kinds) != 1 or set(mode) - set("rwaxbt+") or ("b" in mode and "t" in mode):
            raise ValueError(f"invalid mode: {mode!r}")
        if place in self.folders:
            raise failure(errno.EISDIR, path)
        if kinds == ["x"] and place in self.files:
            raise failure(errno.EEXIST, path)
        if kinds == ["r"] and place not in self.files:
            raise failure(errno.ENOENT, path)
        node = self.files.setdefault(place, Node())
        raw = MemoryFile(path, node, mode)
        if kinds == ["w"]:
            raw.truncate(0)
        if kinds == ["a"]:
            raw.seek(0, io.SEEK_END)
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("can't have unbuffered text I/O")
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffer_of = io.BufferedReader if kinds == ["r"] else io.BufferedWriter
        buffer: Any = io.BufferedRandom(raw, size) if "+" in mode else buffer_of(raw, size)
        if "b" in mode:
            return buffer
        stream: Any = io.TextIOWrapper(buffer, *text, line_buffering=buffering == 1)
        stream.mode = mode
        return stream

    def stat(self, place: str, path: Any) -> os.stat_result:
        """Returns kind, inode number, size and times; the other fields are the same for all."""
        owner = (os.getuid(), os.getgid())
        if place in self.folders:
            return os.stat_result((stat.S_IFDIR | 0o700, -hash(place), 0, 1, *owner, 0, 0, 0, 0))
        if place not in self.files:
            raise failure(errno.ENOENT, path)
        node = self.files[place]
        times = [int(node.changed)] * 3
        return os.stat_result((stat.S_IFREG | 0o600, node.number, 0, 1, *owner, len(node.content), *times))

    def listdir(self, place: str, path: Any) -> list[str]:
        """Lists a directory like os.listdir, sorted."""
        if place not in self.folders:
            raise failure(errno.ENOTDIR if place in self.files else errno.ENOENT, path)
        there = (os.path.split(name) for name in (*self.folders, *self.files) if name)
        return sorted(name for folder, name in there if folder == place)

    def scandir(self, place: str, path: Any) -> Entries:
        """Lists a directory like os.scandir."""
        names = self.listdir(place, path)
        return Entries([Entry(path, name, self.stat(os.path.join(place, name), path)) for name in names])

    def mkdir(self, place: str, path: Any) -> None:
        """Makes a directory like os.mkdir."""
        if place in self.folders or place in self.files:
            raise failure(errno.EEXIST, path)
        self.folders.add(place)

    def remove(self, place: str, path: Any) -> None:
        """Removes a file like os.remove."""
        if place not in self.files:
            raise failure(errno.EISDIR if place in self.folders else errno.ENOENT, path)
        del self.files[place]

    def rmdir(self, place: str, path: Any) -> None:
        """Removes an empty directory like os.rmdir."""
        if place not in self.folders or place == ROOT:
            raise failure(errno.EBUSY if place == ROOT else errno.ENOTDIR, path)
        if self.listdir(place, path):
            raise failure(errno.ENOTEMPTY, path)
        self.folders.remove(place)

    def access(self, place: str, path: Any, mode: int) -> bool:
        """Checks access like os.access: everything can be read and written, and only directories have X_OK."""
        return (place in self.folders or place in self.files) and (place in self.folders or not mode & os.X_OK)

    def chmod(self, place: str, path: Any) -> None:
        """Changes nothing; fails like os.chmod if the path does not exist."""
        self.stat(place, path)

    def rename(self, place: str, path: Any, to: Any) -> None:
        """Renames a file like os.replace. Directories cannot be renamed."""
        target = self.place(to)
        if place not in self.files or target is None or target in self.folders:
            raise failure(errno.EXDEV if place in self.files else errno.ENOENT, path)
        self.files[target] = self.files.pop(place)


def failure(number: int, path: Any) -> OSError:
    """Returns the error that the kernel would return."""
    return OSError(number, os.strerror(number), path)


# The functions of os that are replaced, with the methods of MemoryDir that implement them.
FUNCTIONS = {
    "access": "access",
    "chmod": "chmod",
    "listdir": "listdir",
    "lstat": "stat",
    "mkdir": "mkdir",
    "remove": "remove",
    "rename": "rename",
    "replace": "rename",
    "rmdir": "rmdir",
    "scandir": "scandir",
    "stat": "stat",
    "unlink": "remove",
    "utime": "chmod",
}
# Methods that need the second argument, and its name. The others ignore it: modes and times mean nothing here.
SECOND_ARGUMENT = {"rename": "dst", "access": "mode"}


def install() -> None:
    """Replaces `open` and the functions of os. Modules that are imported from now on use the replacements."""
    builtins.open = io.open = replaced_open(io.open)
    for name, method in FUNCTIONS.items():
        setattr(os, name, replaced(getattr(os, name), method))


def replaced(real: Callable[..., Any], method: str) -> Callable[..., Any]:
    """Returns a function of os that calls a method of MemoryDir for paths in memory, and `real` for others."""
    second = SECOND_ARGUMENT.get(method)

    def replacement(*arguments: Any, **options: Any) -> Any:
        memory = MemoryDir.current
        path = arguments[0] if arguments else options.get("path", options.get("src", "."))
        if memory is not None and options.get("dir_fd") is None and (place := memory.place(path)) is not None:
            further = [] if second is None else [arguments[1] if len(arguments) > 1 else options[second]]
            return getattr(memory, method)(place, path, *further)
        return real(*arguments, **options)

    replacement.__name__ = replacement.__qualname__ = real.__name__
    return replacement


def replaced_open(real: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an `open` that opens paths in memory itself, and calls `real` for others."""

    def replacement(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        memory = MemoryDir.current
        if memory is not None and opener is None and (place := memory.place(file)) is not None:
            return memory.open(place, file, mode, buffering, (encoding, errors, newline))
        if mode == "rb" and isinstance(file, str) and file in LIBRARY_FILES:
            return io.BufferedReader(MemoryFile(file, LIBRARY_FILES[file], "r"))
        return real(file, mode, buffering, encoding, errors, newline, closefd, opener)

    replacement.__name__ = replacement.__qualname__ = "open"
    return replacement

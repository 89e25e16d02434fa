"""Files in memory, where none can be opened: those of the request, and those that a script writes beside them.

Whatever is built on `open`, `os.stat`, `os.listdir` and the other functions here works with them: pathlib, csv, pandas,
numpy, zipfile. Paths outside the working directory are the kernel's, which refuses them.
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

ROOT = ""
MODES = ("r", "w", "a", "x")


class Node:
    """A file, open or not."""

    numbers = itertools.count(2)

    def __init__(self, content: bytes | bytearray | memoryview = b"") -> None:
        self.content = bytearray(content)
        self.number = next(Node.numbers)
        self.changed = time.time()


class MemoryFile(io.RawIOBase):
    """An open file. Its content is shared with every other that is open on it."""

    def __init__(self, name: str, node: Node, mode: str) -> None:
        self.name = name
        self.mode = mode
        self.node = node
        self.content = node.content
        self.position = 0

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return "r" in self.mode or "+" in self.mode

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return "r" not in self.mode or "+" in self.mode

    def seekable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads what fits."""
        if not self.readable():
            raise io.UnsupportedOperation("not readable")
        part = self.content[self.position : self.position + len(buffer)]
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)

    def write(self, data: Any) -> int:
        """Writes all."""
        if not self.writable():
            raise io.UnsupportedOperation("not writable")
        data = memoryview(data).cast("B")
        if "a" in self.mode:
            self.position = len(self.content)
        if self.position > len(self.content):
            self.content.extend(bytes(self.position - len(self.content)))
        self.node.changed = time.time()
        self.content[self.position : self.position + len(data)] = data
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.content)}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = start + offset
        return self.position

    def truncate(self, size: int | None = None) -> int:
        """Makes it shorter, or longer."""
        size = self.position if size is None else size
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        return size


class Entry:
    """What os.scandir says of a file or a directory."""

    def __init__(self, folder: str, name: str, status: os.stat_result) -> None:
        self.name = name
        self.path = os.path.join(folder, name)
        self.status = status

    def __fspath__(self) -> str:
        """Its path."""
        return self.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Its size and kind."""
        return self.status

    def inode(self) -> int:
        """None."""
        return self.status.st_ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a file."""
        return stat.S_ISREG(self.status.st_mode)

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def is_junction(self) -> bool:
        """Never."""
        return False


class Entries:
    """What os.scandir returns."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = iter(entries)

    def __iter__(self) -> Iterator[Entry]:
        """Itself."""
        return self

    def __next__(self) -> Entry:
        """The next."""
        return next(self.entries)

    def __enter__(self) -> "Entries":
        """Itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""


class MemoryDir:
    """The files, and the directories that they are in, by their paths from the working directory on."""

    # Those of the script that runs, once there is one.
    current: ClassVar["MemoryDir | None"] = None

    def __init__(self, outputs: str) -> None:
        MemoryDir.current = self
        self.home = os.getcwd()
        self.outputs_folder = outputs
        self.folders = {ROOT, outputs}
        self.files: dict[str, Node] = {}

    def write(self, name: str, content: memoryview) -> None:
        """Puts a file there, in the directories that its name has."""
        folder, _ = os.path.split(name)
        while folder:
            self.folders.add(folder)
            folder, _ = os.path.split(folder)
        self.files[name] = Node(content)

    def outputs(self, max_parts: int) -> Iterator[tuple[str, io.RawIOBase]]:
        """Opens the files below `outputs/`, one after the other, with their names from there."""
        beneath = self.outputs_folder + "/"
        for name in sorted(self.files):
            if name.startswith(beneath):
                below = name.removeprefix(beneath)
                if below.count("/") >= max_parts:
                    fail("result_too_large", f"{'/'.join(name.split('/')[: max_parts + 1])} is nested too deeply")
                yield below, MemoryFile(name, self.files[name], "r")

    def place(self, path: Any) -> str | None:
        """Where a path is among ours; none, if not even the directory around it is there."""
        if path is None or isinstance(path, int):
            return None
        path = os.fsdecode(path)
        place = os.path.relpath(os.path.abspath(path), self.home)
        if place == ".":
            return None if path.startswith("/") else ROOT  # by its name, the root is the kernel's
        return place if place in self.folders or os.path.dirname(place) in self.folders else None

    def open(
        self, place: str, path: Any, mode: str, buffering: int, text: tuple[str | None, str | None, str | None]
    ) -> Any:
        """As the builtin."""
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
        stream = io.TextIOWrapper(buffer, *text, line_buffering=buffering == 1)
        stream.mode = mode
        return stream

    def stat(self, place: str, path: Any) -> os.stat_result:
        """As os.stat, as far as there is something to say."""
        owner = (os.getuid(), os.getgid())
        if place in self.folders:
            return os.stat_result((stat.S_IFDIR | 0o700, -hash(place), 0, 1, *owner, 0, 0, 0, 0))
        if place not in self.files:
            raise failure(errno.ENOENT, path)
        node = self.files[place]
        times = [int(node.changed)] * 3
        return os.stat_result((stat.S_IFREG | 0o600, node.number, 0, 1, *owner, len(node.content), *times))

    def listdir(self, place: str, path: Any) -> list[str]:
        """As os.listdir."""
        if place not in self.folders:
            raise failure(errno.ENOTDIR if place in self.files else errno.ENOENT, path)
        there = (os.path.split(name) for name in (*self.folders, *self.files) if name)
        return sorted(name for folder, name in there if folder == place)

    def scandir(self, place: str, path: Any) -> Entries:
        """As os.scandir."""
        names = self.listdir(place, path)
        return Entries([Entry(path, name, self.stat(os.path.join(place, name), path)) for name in names])

    def mkdir(self, place: str, path: Any) -> None:
        """As os.mkdir."""
        if place in self.folders or place in self.files:
            raise failure(errno.EEXIST, path)
        self.folders.add(place)

    def remove(self, place: str, path: Any) -> None:
        """As os.remove."""
        if place not in self.files:
            raise failure(errno.EISDIR if place in self.folders else errno.ENOENT, path)
        del self.files[place]

    def rmdir(self, place: str, path: Any) -> None:
        """As os.rmdir."""
        if place not in self.folders or place == ROOT:
            raise failure(errno.EBUSY if place == ROOT else errno.ENOTDIR, path)
        if self.listdir(place, path):
            raise failure(errno.ENOTEMPTY, path)
        self.folders.remove(place)

    def access(self, place: str, path: Any, mode: int) -> bool:
        """As os.access: all is ours, and nothing is a program."""
        return (place in self.folders or place in self.files) and (place in self.folders or not mode & os.X_OK)

    def chmod(self, place: str, path: Any) -> None:
        """As os.chmod, but that it changes nothing."""
        self.stat(place, path)

    def rename(self, place: str, path: Any, to: Any) -> None:
        """As os.replace, for files."""
        target = self.place(to)
        if place not in self.files or target is None or target in self.folders:
            raise failure(errno.EXDEV if place in self.files else errno.ENOENT, path)
        self.files[target] = self.files.pop(place)


def failure(number: int, path: Any) -> OSError:
    """What the kernel would answer."""
    return OSError(number, os.strerror(number), path)


def install() -> None:
    """Lets every module that is imported from now on find the files that there will be."""
    builtins.open = io.open = opening(io.open)
    for name, method in SERVED.items():
        setattr(os, name, serving(getattr(os, name), method))


# What of os is served, and by which method of Memory.
SERVED = {
    name: name for name in ("stat", "listdir", "scandir", "mkdir", "rmdir", "remove", "rename", "access", "chmod")
}
SERVED |= {"lstat": "stat", "unlink": "remove", "replace": "rename", "utime": "chmod"}
# Those that take something besides a path that means something here; most take modes and the like.
TAKES_MORE = {"rename": "dst", "access": "mode"}


def serving(real: Callable[..., Any], method: str) -> Callable[..., Any]:
    """A function of os that looks into memory first."""
    more = TAKES_MORE.get(method)

    def served(*arguments: Any, **options: Any) -> Any:
        memory = MemoryDir.current
        path = arguments[0] if arguments else options.get("path", options.get("src", "."))
        if memory is not None and options.get("dir_fd") is None and (place := memory.place(path)) is not None:
            further = [] if more is None else [arguments[1] if len(arguments) > 1 else options[more]]
            return getattr(memory, method)(place, path, *further)
        return real(*arguments, **options)

    served.__name__ = served.__qualname__ = real.__name__
    return served


def opening(real: Callable[..., Any]) -> Callable[..., Any]:
    """The builtin open that looks into memory first."""

    def opened(
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
        return real(file, mode, buffering, encoding, errors, newline, closefd, opener)

    opened.__name__ = opened.__qualname__ = "open"
    return opened


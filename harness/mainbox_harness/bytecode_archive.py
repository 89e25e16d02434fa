"""One file with the bytecode of everything that the preloaded modules import.

Where files are slow to open, as under gVisor, a thousand of them take longer than what they say.
"""

import importlib
import marshal
import mmap
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER, spec_from_file_location
from types import CodeType, ModuleType

HEADER = struct.Struct("<4sQ")  # which Python's bytecode it is, and the length of the index that follows


class Archive:
    """A finder of the modules in an archive."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            sys.exit(f"MAINBOX_ARCHIVE must lie where the interpreter's libraries are: {error}")
        magic, length = HEADER.unpack_from(self.map)
        if magic != MAGIC_NUMBER:
            sys.exit("MAINBOX_ARCHIVE is of another version of Python; make it anew with `mainbox archive`")
        self.start = HEADER.size + length
        # From name to path, offset and length.
        self.index: dict[str, tuple[str, int, int]] = marshal.loads(self.map[HEADER.size : self.start])

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module, as sys.meta_path asks for it."""
        if name not in self.index:
            return None
        origin, _, _ = self.index[name]
        return spec_from_file_location(name, origin, loader=ArchivedLoader(name, origin, self))

    def code(self, name: str) -> CodeType | None:
        """The code of a module, if it is here."""
        if name not in self.index:
            return None
        _, offset, length = self.index[name]
        with memoryview(self.map) as whole, whole[self.start + offset :][:length] as part:
            return marshal.loads(part)

    def close(self) -> None:
        """Gives the memory back; what is loaded once more comes from its file."""
        self.index = {}
        self.map.close()


class ArchivedLoader(SourceFileLoader):
    """The loader of a file that need not be opened."""

    def __init__(self, name: str, path: str, archive: Archive) -> None:
        super().__init__(name, path)
        self.archive = archive

    def get_code(self, fullname: str) -> CodeType | None:
        """From the archive, or from the file."""
        return self.archive.code(fullname) or super().get_code(fullname)


@contextmanager
def archived(path: str) -> Iterator[None]:
    """Imports what is in the archive from there."""
    archive = Archive(path)
    sys.meta_path.insert(0, archive)
    try:
        yield
    finally:
        sys.meta_path.remove(archive)
        archive.close()


def write(path: str, names: Sequence[str]) -> None:
    """Imports the named modules, and writes all that came with them to `path`."""
    for name in names:
        importlib.import_module(name)
    index, codes, offset = {}, [], 0
    for name, module in sorted(sys.modules.items()):
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if isinstance(loader, SourceFileLoader) and loader.name == name:
            code = marshal.dumps(loader.get_code(name))
            index[name] = (loader.path, offset, len(code))
            codes.append(code)
            offset += len(code)
    places = marshal.dumps(index)
    with open(path, "wb") as file:
        file.writelines([HEADER.pack(MAGIC_NUMBER, len(places)), places, *codes])

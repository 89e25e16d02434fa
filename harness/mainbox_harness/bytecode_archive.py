"""The bytecode archive: one file with the bytecode of everything that the preloaded modules import.

It is for hosts where opening files is slow. Under gVisor, opening a file takes longer than loading its code. It also has
the harness, which a zygote would otherwise compile; `loader.py` reads that part.
"""

import binascii
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

# The magic number of the bytecode, which differs between versions of Python, and the length of the index that follows.
HEADER = struct.Struct("<4sQ")
# The index has two parts: of the imported modules, and of the harness.
PARTS = 2


class Archive:
    """Finds the modules in an archive."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            sys.exit(f"cannot read MAINBOX_ARCHIVE, which must be beside the interpreter's libraries: {error}")
        magic, length = HEADER.unpack_from(self.map)
        if magic != MAGIC_NUMBER:
            sys.exit("MAINBOX_ARCHIVE is from another version of Python; write it again with `mainbox archive`")
        self.start = HEADER.size + length
        index = marshal.loads(self.map[HEADER.size : self.start])
        if type(index) is not tuple or len(index) != PARTS:
            sys.exit("MAINBOX_ARCHIVE is from another version of mainbox; write it again with `mainbox archive`")
        self.index: dict[str, tuple[str, int, int]] = index[0]
        """From the name of a module to its path, and the offset and length of its code."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module, as `sys.meta_path` requires."""
        if name not in self.index:
            return None
        origin, _, _ = self.index[name]
        return spec_from_file_location(name, origin, loader=ArchivedLoader(name, origin, self))

    def code(self, name: str) -> CodeType | None:
        """Returns the code of a module, if it is in the archive."""
        if name not in self.index:
            return None
        _, offset, length = self.index[name]
        with memoryview(self.map) as whole, whole[self.start + offset :][:length] as part:
            return marshal.loads(part)

    def close(self) -> None:
        """Unmaps the archive. Modules that are loaded again come from their files."""
        self.index = {}
        self.map.close()


class ArchivedLoader(SourceFileLoader):
    """Loads a module from the archive without opening its file."""

    def __init__(self, name: str, path: str, archive: Archive) -> None:
        super().__init__(name, path)
        self.archive = archive

    def get_code(self, fullname: str) -> CodeType | None:
        """Returns the code from the archive, or from the file if the archive is closed."""
        return self.archive.code(fullname) or super().get_code(fullname)


@contextmanager
def archived(path: str) -> Iterator[None]:
    """Lets imports use the archive at `path`."""
    archive = Archive(path)
    sys.meta_path.insert(0, archive)
    try:
        yield
    finally:
        sys.meta_path.remove(archive)
        archive.close()


def write(path: str, names: Sequence[str], harness: dict[str, str]) -> None:
    """Imports the named modules, and writes everything that was imported to `path`, and the modules of the harness."""
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
    compiled = {name: compile(source, f"<{name}>", "exec", dont_inherit=True) for name, source in harness.items()}
    codes.append(marshal.dumps(compiled))
    checksum = binascii.crc32(repr(harness).encode())
    entries = marshal.dumps((index, (checksum, offset, len(codes[-1]))))
    with open(path, "wb") as file:
        file.writelines([HEADER.pack(MAGIC_NUMBER, len(entries)), entries, *codes])

"""The program that Python runs first: makes the package importable from memory and starts the zygote.

The boot message arrives on descriptor 3 and contains the source of every module. No file of the harness exists on the
host.
"""

import binascii
import gc
import importlib
import json
import marshal
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

if sys.version_info < (3, 11):
    sys.exit(f"mainbox needs CPython 3.11 or newer; MAINBOX_PYTHON is {sys.version.split()[0]}")

PACKAGE = "mainbox_harness"
CONTROL = 3


class HarnessFinder:
    """Finds and loads the modules of the package."""

    def __init__(self, sources: dict[str, str], archive: str | None) -> None:
        self.compiled = from_archive(archive, sources)
        self.sources = sources | {PACKAGE: ""}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module, as `sys.meta_path` requires."""
        if name not in self.sources:
            return None
        loader: Any = self  # has the methods of importlib.abc.Loader, which is slow to import
        return ModuleSpec(name, loader, origin=f"<{name}>", is_package=name == PACKAGE)

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves the creation of the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code of a module."""
        name = module.__name__
        code = self.compiled.get(name) or compile(self.sources[name], f"<{name}>", "exec")
        exec(code, module.__dict__)


def from_archive(path: str | None, sources: dict[str, str]) -> dict[str, CodeType]:
    """Returns the code of the package from the bytecode archive; nothing if it is of another version or cannot be read.

    `bytecode_archive` describes the file, and tells what is wrong with it when packages are imported from it.
    """
    if path is None:
        return {}
    # importlib.util has the number too, but is slow to import.
    bootstrap: Any = sys.modules["_frozen_importlib_external"]
    try:
        with open(path, "rb") as file:
            magic, length = file.read(4), int.from_bytes(file.read(8), "little")
            if magic != bootstrap.MAGIC_NUMBER:
                return {}
            _, (checksum, offset, size) = marshal.loads(file.read(length))
            if checksum != binascii.crc32(repr(sources).encode()):
                return {}
            file.seek(offset, os.SEEK_CUR)
            return marshal.loads(file.read(size))
    except Exception:  # whatever the file contains, the sources are there
        return {}


def read(length: int) -> bytes:
    """Reads from the control socket. The boot message has the form that the module `control` describes."""
    data = b""
    while len(data) < length:
        received = os.read(CONTROL, length - len(data))
        if not received:
            sys.exit()  # the supervisor is gone
        data += received
    return data


def main() -> None:
    """Loads the harness, removes its traces and serves."""
    gc.disable()  # imported objects stay alive, so collecting garbage among them only costs time
    boot = json.loads(read(int.from_bytes(read(4), "little")))
    finder = HarnessFinder(dict(boot["harness"]), boot["harness_archive"])
    sys.meta_path.insert(0, finder)
    zygote = importlib.import_module(f"{PACKAGE}.zygote").Zygote(boot)
    # Scripts must not find the harness among the modules.
    sys.meta_path.remove(finder)
    for name in finder.sources:
        sys.modules.pop(name, None)
    zygote.run()


main()

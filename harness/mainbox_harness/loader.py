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
# Their garbage collector runs so rarely that scripts reach their memory limit: https://github.com/python/cpython/issues/142516.
if (3, 14) <= sys.version_info < (3, 14, 5):
    sys.exit(
        "mainbox does not run on CPython 3.14.0 to 3.14.4, whose garbage collector lets memory grow; "
        f"use 3.14.5 or newer, or 3.13; MAINBOX_PYTHON is {sys.version.split()[0]}"
    )

PACKAGE = "mainbox_harness"
# Of the bytecode of this Python. importlib.util has the number too, but is slow to import.
bootstrap: Any = sys.modules["_frozen_importlib_external"]
MAGIC_NUMBER: bytes = bootstrap.MAGIC_NUMBER
CONTROL = 3
CHECKSUM_BYTES = 4


class HarnessFinder:
    """Finds and loads the modules of the package."""

    def __init__(self, sources: dict[str, str], archive: str | None, cached: str | None) -> None:
        self.version = MAGIC_NUMBER + checksum_of(repr(sources).encode())
        self.compiled = from_archive(archive, sources) or from_cache(cached or "", self.version)
        self.known = len(self.compiled)
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
        if name not in self.compiled:
            self.compiled[name] = compile(self.sources[name], f"<{name}>", "exec")
        exec(self.compiled[name], module.__dict__)

    def new_cache(self) -> bytes:
        """Returns the code for the next start; nothing if that is what it was given."""
        if len(self.compiled) == self.known:
            return b""
        code = marshal.dumps(self.compiled)
        return self.version + checksum_of(code) + code


def from_archive(path: str | None, sources: dict[str, str]) -> dict[str, CodeType]:
    """Returns the code of the package from the bytecode archive; nothing if it is of another version or cannot be read.

    `bytecode_archive` describes the file, and tells what is wrong with it when packages are imported from it.
    """
    if path is None:
        return {}
    try:
        with open(path, "rb") as file:
            magic, length = file.read(4), int.from_bytes(file.read(8), "little")
            if magic != MAGIC_NUMBER:
                return {}
            _, (checksum, offset, size) = marshal.loads(file.read(length))
            if checksum != binascii.crc32(repr(sources).encode()):
                return {}
            file.seek(offset, os.SEEK_CUR)
            return marshal.loads(file.read(size))
    except Exception:  # whatever the file contains, the sources are there
        return {}


def from_cache(cached: str, version: bytes) -> dict[str, CodeType]:
    """Returns the code that the supervisor has kept; nothing if it is of another version."""
    data = binascii.a2b_base64(cached)
    start = len(version) + CHECKSUM_BYTES
    code = data[start:]
    # The file may have been cut off.
    return marshal.loads(code) if data[:start] == version + checksum_of(code) else {}


def checksum_of(data: bytes) -> bytes:
    """Returns a checksum that tells different versions apart, and finds damage. It does not protect from an attacker."""
    return binascii.crc32(data).to_bytes(CHECKSUM_BYTES, "little")


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
    finder = HarnessFinder(dict(boot["harness"]), boot["harness_archive"], boot["harness_cache"])
    sys.meta_path.insert(0, finder)
    zygote = importlib.import_module(f"{PACKAGE}.zygote").Zygote(boot)
    if boot["harness_cache"] is not None and (cache := finder.new_cache()):
        code = binascii.b2a_base64(cache, newline=False).decode()
        sys.modules[f"{PACKAGE}.control"].send(CONTROL, {"report": "compiled", "code": code})
    # Scripts must not find the harness among the modules.
    sys.meta_path.remove(finder)
    for name in finder.sources:
        sys.modules.pop(name, None)
    zygote.run()


main()
